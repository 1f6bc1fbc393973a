// Command controlplane is etcd, the Kubernetes control plane, kubectl and Helm in one
// binary, built from their own Go modules. Which of them runs is decided by the name it
// was started under, or by its first argument:
//
//	kube-apiserver --etcd-servers=...            (a link named kube-apiserver)
//	controlplane kube-apiserver --etcd-servers=...
//
// One binary instead of six shares the 100 MB of libraries that all of them link, and is
// built and cached as one thing.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/etcdmain"
	helm "helm.sh/helm/v4/pkg/cmd"
	"helm.sh/helm/v4/pkg/kube"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// tools maps the name a tool is started under to its entry point. Each takes its own
// arguments from os.Args and returns the exit status.
var tools = map[string]func() int{
	"etcd":                    runEtcd,
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllermanager.NewControllerManagerCommand()) },
	"kube-scheduler":          func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	"kubectl":                 runKubectl,
	"helm":                    runHelm,
}

func main() {
	name := filepath.Base(os.Args[0])
	run, known := tools[name]
	if !known && len(os.Args) > 1 {
		name = os.Args[1]
		if run, known = tools[name]; known {
			os.Args = os.Args[1:]
		}
	}
	if !known {
		names := make([]string, 0, len(tools))
		for tool := range tools {
			names = append(names, tool)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "usage: controlplane TOOL [ARGUMENT...]\nwhere TOOL is one of %s\n", strings.Join(names, ", "))
		os.Exit(2)
	}
	os.Exit(run())
}

func runEtcd() int {
	etcdmain.Main(os.Args) // exits by itself when it fails
	return 0
}

func runKubectl() int {
	command := kubectl.NewDefaultKubectlCommand()
	if err := cli.RunNoErrOutput(command); err != nil {
		util.CheckErr(err) // prints kubectl's own wording and exits
	}
	return 0
}

func runHelm() int {
	kube.ManagedFieldsManager = "helm" // else the manager is named after this binary
	command, err := helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	if err := command.Execute(); err != nil {
		return 1
	}
	return 0
}
