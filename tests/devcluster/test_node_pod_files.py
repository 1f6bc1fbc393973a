"""What a container is given: variables, volumes, tokens, and the Event where that cannot be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.node_pods import Namespace, container, pod, shell

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster

ASK = """
import json, os, ssl, urllib.request, yaml
config = yaml.safe_load(open(os.environ['KUBECONFIG']))
cluster, user = config['clusters'][0]['cluster'], config['users'][0]['user']
import base64
tls = ssl.create_default_context(cadata=base64.b64decode(cluster['certificate-authority-data']).decode())
token = open(user['tokenFile']).read()
assert token == user['token']
host = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
assert host == cluster['server'], (host, cluster)
body = json.dumps({'apiVersion': 'authentication.k8s.io/v1', 'kind': 'SelfSubjectReview'}).encode()
request = urllib.request.Request(host + '/apis/authentication.k8s.io/v1/selfsubjectreviews', body,
    {'Authorization': 'Bearer ' + token, 'Content-Type': 'application/json'})
print(json.load(urllib.request.urlopen(request, context=tls))['status']['userInfo']['username'])
"""


@pytest.fixture
def ns(cluster: Cluster, namespace: str) -> Namespace:
    return Namespace(cluster, namespace)


def _config(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _secret(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def _from(**source: Any) -> dict[str, Any]:
    return {"valueFrom": source}


def _wait_done(ns: Namespace, name: str) -> str:
    ns.wait(lambda: ns.phase(name) in {"Succeeded", "Failed"}, f"{name} has ended")
    assert ns.phase(name) == "Succeeded", ns.kubectl("logs", name)
    return ns.kubectl("logs", name)


def test_variables_of_every_kind(ns: Namespace) -> None:
    """Every source of variables reaches the process, expanded, prefixed, and optional where it says so."""
    env = [
        {"name": "PLAIN", "value": "x"},
        {"name": "EXPANDED", "value": "$(PLAIN)-$$(PLAIN)-$(MISSING)"},
        {"name": "NAME", **_from(fieldRef={"fieldPath": "metadata.name"})},
        {"name": "LABEL", **_from(fieldRef={"fieldPath": "metadata.labels['app']"})},
        {"name": "IP", **_from(fieldRef={"fieldPath": "status.podIP"})},
        {"name": "HOST_IP", **_from(fieldRef={"fieldPath": "status.hostIP"})},
        {"name": "NODE", **_from(fieldRef={"fieldPath": "spec.nodeName"})},
        {"name": "ACCOUNT", **_from(fieldRef={"fieldPath": "spec.serviceAccountName"})},
        {"name": "CPU", **_from(resourceFieldRef={"resource": "limits.cpu", "divisor": "1m"})},
        {"name": "KEY", **_from(configMapKeyRef={"name": "config", "key": "a"})},
        {"name": "PASSWORD", **_from(secretKeyRef={"name": "secret", "key": "p"})},
        {"name": "ABSENT", **_from(secretKeyRef={"name": "nothing", "key": "p", "optional": True})},
    ]
    sources = [
        {"configMapRef": {"name": "config"}, "prefix": "C_"},
        {"secretRef": {"name": "no", "optional": True}},
    ]
    ns.apply(
        _config("config", a="1", b="2"),
        _secret("secret", p="s3cret"),
        pod(
            "env",
            container(
                "python",
                "-c",
                "import os, json; print(json.dumps(dict(os.environ)))",
                env=env,
                envFrom=sources,
                resources={"limits": {"cpu": "250m"}},
            ),
            labels={"app": "demo"},
            restartPolicy="Never",
        ),
    )
    seen = json.loads(_wait_done(ns, "env"))
    status = ns.get("env")
    expected = {
        "EXPANDED": "x-$(PLAIN)-$(MISSING)",
        "NAME": "env",
        "LABEL": "demo",
        "IP": status["status"]["podIP"],
        "HOST_IP": status["status"]["hostIP"],
        "NODE": status["spec"]["nodeName"],
        "ACCOUNT": "default",
        "CPU": "250",
        "KEY": "1",
        "PASSWORD": "s3cret",
        "C_a": "1",
        "C_b": "2",
        "TURNOUT_BIND_ADDRESS": status["status"]["podIP"],
        "TURNOUT_DEV_CLUSTER": str(ns.cluster.state_dir),
    }
    assert {k: seen.get(k) for k in expected} == expected
    assert "ABSENT" not in seen


def test_token_is_accepted_by_the_api_server(ns: Namespace) -> None:
    """The pod's kubeconfig, token file and CA let it speak to the API server as its service account."""
    ns.apply(pod("who", container("python", "-c", ASK), restartPolicy="Never"))
    assert _wait_done(ns, "who").strip() == f"system:serviceaccount:{ns.name}:default"


def test_no_token_where_none_is_wanted(ns: Namespace) -> None:
    """With automountServiceAccountToken false there is neither a kubeconfig nor a token."""
    ns.apply(
        pod(
            "refused",
            shell("test -z $KUBECONFIG && test ! -e $TURNOUT_POD_ROOT/var"),
            automountServiceAccountToken=False,
            restartPolicy="Never",
        )
    )
    _wait_done(ns, "refused")


def test_volumes_of_every_kind(ns: Namespace) -> None:
    """ConfigMap, secret, downwardAPI, projected and empty volumes hold what they should, at paths as written."""
    ns.apply(
        _config("config", **{"app.yaml": "a: 1", "other": "o"}),
        _secret("secret", key="k3y"),
        pod(
            "files",
            shell(
                "cat /etc/app/app.yaml; ls /etc/app; cat /etc/one; stat -L -c %a /secret/key; cat /secret/key; "
                "cat /info/labels; cat /all/c /all/token | head -c 20; echo; touch /data/x /scratch/sub && ls /data/x; "
                "echo $CONFIG",
                env=[{"name": "CONFIG", "value": "--config=/etc/app/app.yaml"}],
                volumeMounts=[
                    {"name": "config", "mountPath": "/etc/app"},
                    {"name": "config", "mountPath": "/etc/one", "subPath": "other"},
                    {"name": "secret", "mountPath": "/secret", "readOnly": True},
                    {"name": "info", "mountPath": "/info"},
                    {"name": "all", "mountPath": "/all"},
                    {"name": "empty", "mountPath": "/data"},
                    {"name": "empty", "mountPath": "/scratch", "subPath": "part"},
                ],
            ),
            labels={"app": "demo"},
            restartPolicy="Never",
            volumes=[
                {"name": "config", "configMap": {"name": "config"}},
                {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 0o400}},
                {
                    "name": "info",
                    "downwardAPI": {
                        "items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
                    },
                },
                {
                    "name": "all",
                    "projected": {
                        "sources": [
                            {"configMap": {"name": "config", "items": [{"key": "other", "path": "c"}]}},
                            {"serviceAccountToken": {"path": "token", "audience": "others"}},
                        ]
                    },
                },
                {"name": "empty", "emptyDir": {}},
            ],
        ),
    )
    text = _wait_done(ns, "files")
    assert text.startswith("a: 1app.yaml\nother\no400\nk3y")
    assert 'app="demo"oeyJ' in text
    assert text.splitlines()[-1].endswith("/etc/app/app.yaml")


def test_changed_config_map_reaches_the_volume(ns: Namespace) -> None:
    """A running container sees new content of a ConfigMap volume within seconds, without a restart."""
    script = 'last=; while :; do now=$(cat /etc/app/v); test "$now" = "$last" || echo $now; last=$now; sleep 0.1; done'
    ns.apply(
        _config("config", v="old"),
        pod(
            "watcher",
            shell(script, volumeMounts=[{"name": "c", "mountPath": "/etc/app"}]),
            volumes=[{"name": "c", "configMap": {"name": "config"}}],
        ),
    )
    ns.wait(
        lambda: ns.phase("watcher") == "Running" and "old" in ns.kubectl("logs", "watcher"), "the old value"
    )
    ns.apply(_config("config", v="new"))
    ns.wait(lambda: ns.kubectl("logs", "watcher").split() == ["old", "new"], "the new value", seconds=30)


def test_missing_objects_are_waited_for(ns: Namespace) -> None:
    """A pod whose Secret and ConfigMap are missing says so, and starts once they are there."""
    ns.apply(
        pod(
            "patient",
            shell(
                "cat /c/v; echo $P",
                env=[{"name": "P", **_from(secretKeyRef={"name": "later", "key": "p"})}],
                volumeMounts=[{"name": "c", "mountPath": "/c"}],
            ),
            volumes=[{"name": "c", "configMap": {"name": "later"}}],
            restartPolicy="Never",
        )
    )
    ns.wait(
        lambda: 'FailedMount configmap "later" not found' in ns.events("patient"), "the event on the volume"
    )
    assert ns.state("patient")["state"]["waiting"]["reason"] == "ContainerCreating"
    ns.apply(_config("later", v="here "))
    ns.wait(
        lambda: (
            ns.state("patient").get("state", {}).get("waiting", {}).get("reason")
            == "CreateContainerConfigError"
        ),
        "the variable is missing",
    )
    ns.apply(_secret("later", p="too"))
    assert _wait_done(ns, "patient").split() == ["here", "too"]


REFUSED = {
    "network-volume": (
        pod("x", shell("true"), volumes=[{"name": "n", "nfs": {"server": "files", "path": "/srv"}}]),
        "the dev cluster has no nfs volumes",
    ),
    "host-network": (pod("x", shell("true"), hostNetwork=True), "hostNetwork is not supported"),
    "grpc-probe": (
        pod("x", shell("true", readinessProbe={"grpc": {"port": 1}})),
        "readinessProbe by gRPC is not supported",
    ),
    "no-command": (pod("x", {"name": "main", "image": "nginx"}), "pulls no images: say the command"),
    "working-dir": (pod("x", shell("true", workingDir="/app")), "workingDir /app is in an image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_given_is_reported(ns: Namespace, case: str) -> None:
    """A request that the node cannot fulfill ends in a Warning event that says so; the pod does not run."""
    manifest, message = REFUSED[case]
    ns.apply(manifest)
    ns.wait(lambda: message in ns.events("x"), "the event")
    assert ns.phase("x") == "Pending"
    if case in {"no-command", "working-dir"}:
        assert ns.state("x")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    ns.kubectl("delete", "pod", "x")
