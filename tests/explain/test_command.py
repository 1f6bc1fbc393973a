"""`turnout explain`, as people type it: against routers by URL, through kubectl, and where no router can be asked."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from support.node_pods import Namespace, container, pod
from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, LONG, chat, config, pair, running_router
from support.worker_process import die_with_parent
from turnout_cli.explain import account_lines, summary_lines

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_devcluster.cluster import Cluster

ACCOUNT: dict[str, Any] = {
    "id": "r1", "at": "2026-01-01T00:00:00.000+00:00", "path": "/v1/chat/completions", "model": "m",
    "deployment": "default/m", "status": 200, "seconds": 0.5, "sentence": "because",
    "stream": True, "estimated": {"promptTokens": 500, "outputTokens": 9}, "usage": None,
    "prefilledAfterSeconds": 0.02, "firstTokenAfterSeconds": 0.03,
    "steps": [
        {
            "kind": "chosen", "afterSeconds": 0.001, "decode": "d", "prefill": "p", "local": None, "sentence": "because",
            "candidates": [
                {"backend": "d", "role": "decode", "chosen": True, "figures": {"queue": 0.25, "cachedTokens": 512}},
                {"backend": "d2", "role": "decode", "chosen": False, "figures": {"queue": 1.5}},
            ],
        },
        {
            "kind": "failed", "afterSeconds": 0.01, "role": "prefill", "backend": "p0", "fault": "reset", "message": "gone",
        },
    ],
}  # fmt: skip


PENDING = {"items": [{"metadata": {"namespace": "ns", "name": "r-0"}, "status": {"phase": "Pending"}}]}


async def turnout(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command; return its status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from turnout_cli.main import main; main()", "explain", *arguments,
        env=os.environ | {"COLUMNS": "200"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


def fake_kubectl(folder: Path, script: str) -> str:
    """Write a kubectl that runs *script*; return the PATH on which it comes first."""
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_an_account_reads_from_top_to_bottom() -> None:
    """Steps, times and figures stand in order, whatever figures a policy has; the chosen ones are marked."""
    text = "\n".join(account_lines(ACCOUNT))
    steps = [
        "chosen: decode on d, prefill on p",
        "failed (reset): gone",
        "prompt is computed",
        "first token",
        "ended",
    ]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    assert "used not reported" in text
    header, chosen, other = (
        line.split() for line in text.splitlines() if " role " in line or " decode " in line[14:24]
    )
    assert header == ["role", "backend", "queue", "cachedTokens"]
    assert chosen == ["*", "decode", "d", "0.25", "512"]
    assert other == ["decode", "d2", "1.5"]


def test_a_running_request_and_one_whose_client_left_are_shown_as_such() -> None:
    """An account without an end is that of a running request; 499 is a client that left."""
    assert "still running" in "\n".join(account_lines(ACCOUNT | {"seconds": None, "status": None}))
    assert "the client left" in "\n".join(account_lines(ACCOUNT | {"status": 499}))
    assert "running" in summary_lines(ACCOUNT | {"seconds": None, "status": None})[0]


async def test_a_request_is_explained_by_the_router_that_served_it(tmp_path: Path) -> None:
    """Of several routers, the one that knows the request answers; a request that none knows is status 1."""
    async with mock_worker() as prefill, mock_worker() as decode:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        async with (
            running_router(tmp_path / "one", pair(prefill, decode, policy="LeastLoaded")) as idle,
            running_router(tmp_path / "two", pair(prefill, decode, policy="LeastLoaded")) as busy,
        ):
            await busy.client.post("/v1/chat/completions", json=chat(LONG), headers={"x-request-id": "a-1"})
            urls = [f"http://127.0.0.1:{r.router.admin_port}" for r in (idle, busy)]
            both = [argument for url in urls for argument in ("--admin", url)]
            status, out, _ = await turnout("request", "a-1", *both)
            listed = await turnout("requests", *both, "--deployment", DEPLOYMENT)
            unknown = await turnout("request", "a-2", *both)
            halved = await turnout("request", "a-1", "--router", "http://127.0.0.1:9", "--router", urls[1])
    assert status == 0
    assert urls[1] in out
    assert f"chosen: decode on {decode.id}, prefill on {prefill.id}" in out
    assert "ended with 200" in out
    assert listed[0] == 0
    assert "a-1" in listed[1]
    assert unknown[0] == 1
    assert "none of 2 routers remembers a-2" in unknown[2]
    assert halved[0] == 0
    assert "cannot be asked" in halved[2]


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("echo 'no configuration has been provided' >&2; exit 1", "set KUBECONFIG"),
        (
            'case "$*" in *crd*) echo crd/x ;; *) echo \'{"items": []}\' ;; esac',
            "no router runs in any namespace",
        ),
        (
            "case \"$*\" in *crd*) echo '(Forbidden)' >&2; exit 1 ;; *) echo '{\"items\": []}' ;; esac",
            "no router runs in any namespace",
        ),
        (
            'case "$*" in *crd*) ;; *) echo \'{"items": []}\' ;; esac',
            "Turnout is not installed in this cluster",
        ),
        (f"echo '{json.dumps(PENDING)}'", "ns/r-0 is Pending; see: kubectl -n ns describe pod r-0"),
        ("echo hello", "not as a router's admin port does"),
    ],
)
async def test_what_stands_in_the_way_is_said(tmp_path: Path, script: str, word: str) -> None:
    """Status 2 with what to do, where there is no cluster, no router, or no sense in the answer."""
    status, _, err = await turnout("request", "x", PATH=fake_kubectl(tmp_path, script))
    assert status == 2
    assert word in err


MEMCACHE = (
    'E1201 11:00:19.422886    1243 memcache.go:265] "Unhandled Error" err="couldn\'t get current server API group list: '
    'Get \\"http://{0}/api?timeout=5s\\": dial tcp {0}: connect: connection refused"\n'
)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (
            MEMCACHE.format("localhost:8080") * 5
            + "The connection to the server localhost:8080 was refused - did you specify the right host or port?",
            "kubectl knows no cluster: set KUBECONFIG, give --kubeconfig FILE, or start one with 'turnout dev up'",
        ),
        (
            MEMCACHE.format("10.0.0.1:6443") * 5
            + "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?",
            "API server cannot be reached",
        ),
        (
            "Unable to connect to the server: dial tcp: lookup nohost.invalid: no such host",
            "cannot be reached",
        ),
        ("error: stat /nonexist: no such file or directory", "there is no such kubeconfig"),
        (
            'error: error loading config file "/bad": yaml: line 1: did not find',
            "the kubeconfig cannot be read",
        ),
        ("Error in configuration: context was not found for specified context: far", "no such context"),
        ("error: You must be logged in to the server (Unauthorized)", "does not know who you are"),
        (
            'Error from server (Forbidden): pods is forbidden: User "x" cannot list resource "pods" at the cluster scope',
            "give --namespace of one where you may",
        ),
        ("Unable to connect to the server: x509: certificate signed by unknown authority", "certificate"),
        ("something unforeseen", "kubectl: something unforeseen"),
        ("", "did not say why"),
    ],
)
async def test_what_kubectl_complains_of_is_one_sentence(tmp_path: Path, said: str, word: str) -> None:
    """Whatever stands in the way to a cluster: one line that says what to do, and nothing of kubectl's own log."""
    (tmp_path / "said").write_text(said)
    path = fake_kubectl(tmp_path, f"cat {tmp_path}/said >&2; exit 1")
    status, out, err = await turnout("requests", PATH=path, KUBECONFIG="")
    assert (status, out) == (2, "")
    assert word in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "memcache" not in err


@pytest.mark.parametrize("flag", [True, False])
async def test_a_kubeconfig_that_names_no_cluster_is_named(tmp_path: Path, flag: bool) -> None:  # noqa: FBT001 - a case
    """Where a file was given, it is that file which is wrong."""
    path = fake_kubectl(
        tmp_path, "echo 'The connection to the server localhost:8080 was refused' >&2; exit 1"
    )
    arguments = ["--kubeconfig", "/given"] if flag else []
    status, _, err = await turnout("requests", *arguments, PATH=path, KUBECONFIG="" if flag else "/given")
    assert status == 2
    assert "/given names no cluster" in err


async def test_a_kubectl_that_cannot_be_run_is_said(tmp_path: Path) -> None:
    """A kubectl for another machine, and none at all."""
    path = fake_kubectl(tmp_path, "")
    (tmp_path / "kubectl").write_bytes(b"\x7fELF of another machine")
    status, _, err = await turnout("requests", PATH=path)
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot be run" in err
    nothing = await turnout("requests", PATH=str(tmp_path / "none"), TURNOUT_CACHE=str(tmp_path / "cache"))
    assert nothing[0] == 2
    assert "kubectl is not installed" in nothing[2]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl to ask")
async def test_without_a_kubeconfig_the_real_kubectl_is_one_sentence(tmp_path: Path) -> None:
    """The five lines of kubectl about its memory cache are not shown."""
    status, _, err = await turnout("requests", KUBECONFIG="", HOME=str(tmp_path), KUBERNETES_SERVICE_HOST="")
    assert (status, err.count("\n")) == (2, 1)
    assert "set KUBECONFIG" in err


async def test_a_url_that_is_no_admin_port_is_said(tmp_path: Path) -> None:
    """The public port knows no decisions, and a thing that is no URL is none."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        public = await turnout("requests", "--admin", r.base_url.removesuffix("/v1"))
    nonsense = await turnout("requests", "--admin", "nonsense")
    assert public[0] == 0
    assert not public[1]
    assert nonsense[0] == 2
    assert "cannot be asked" in nonsense[2]


def pods_behind(port: int, folder: Path, secret: str) -> str:
    """Return the PATH of a kubectl that knows one router pod, forwards its port to *port*, and runs *secret* for it."""
    router = {
        "metadata": {"namespace": "ns", "name": "r-0"},
        "spec": {
            "volumes": [{"name": "admin-token", "secret": {"secretName": "s", "items": [{"key": "k"}]}}]
        },
        "status": {"phase": "Running", "podIP": "10.0.0.7"},
    }
    (folder / "pods.json").write_text(json.dumps({"items": [router]}))
    return fake_kubectl(
        folder,
        f"""
echo "$@" >> {folder}/calls
case "$*" in
*"get pods"*) cat {folder}/pods.json ;;
*"get secret s --namespace ns"*) {secret} ;;
*"--namespace ns port-forward --address 127.0.0.1 pod/r-0 :9090"*)
  echo "Forwarding from 127.0.0.1:{port} -> 9090"; echo $$ > {folder}/pid; exec sleep 60 ;;
*) echo 'Error from server (Forbidden)' >&2; exit 1 ;;
esac
""",
    )


async def test_a_router_pod_is_asked_through_a_forwarded_port_and_with_its_own_token(tmp_path: Path) -> None:
    """kubectl, with the cluster that was named, finds the pod and its token, and leads to it; nothing of it stays."""
    token = "a-token-of-enough-bytes"
    (tmp_path / "token").write_text(token)
    encoded = base64.b64encode(token.encode()).decode()
    async with (
        mock_worker() as worker,
        running_router(
            tmp_path, config([("aggregated", worker.url)]), admin_token_file=tmp_path / "token"
        ) as r,
    ):
        await r.client.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "r1"})
        port = r.router.admin_port
        path = pods_behind(port, tmp_path, f"""echo '{{"data": {{"k": "{encoded}"}}}}'""")
        status, out, err = await turnout("request", "r1", "--context", "far", "--namespace", "ns", PATH=path)
        assert (status, err) == (0, "")
        assert "router    ns/r-0" in out
        calls = (tmp_path / "calls").read_text().splitlines()
        assert all(call.startswith("--context far ") for call in calls)
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
        unknown, _, err = await turnout("request", "r2", PATH=path)
        assert (unknown, "none of 1 routers" in err) == (1, True)
        url = f"http://127.0.0.1:{port}"
        with_file = await turnout("request", "r1", "--admin", url, "--token-file", str(tmp_path / "token"))
        assert with_file[0] == 0
        without = await turnout("request", "r1", "--admin", url)
        assert (without[0], "give --token-file" in without[2]) == (2, True)
        (tmp_path / "other").write_text("another-token-of-enough-bytes")
        wrong = await turnout("requests", "--admin", url, TURNOUT_ADMIN_TOKEN_FILE=str(tmp_path / "other"))
        assert (wrong[0], "does not know this admin token" in wrong[2]) == (2, True)


@pytest.mark.parametrize(
    ("secret", "word"),
    [
        ("echo 'Error from server (Forbidden): no' >&2; exit 1", "ask for the right to get it"),
        ("echo '{\"data\": {}}'", "holds no admin token under the key 'k'"),
        ('echo \'{"data": {"k": "/"}}\'', "holds no admin token under the key 'k'"),
    ],
)
async def test_a_token_that_cannot_be_had_is_said(tmp_path: Path, secret: str, word: str) -> None:
    """Status 2, with the Secret's name and what to do."""
    status, _, err = await turnout("requests", PATH=pods_behind(9, tmp_path, secret))
    assert status == 2
    assert "ns/s" in err
    assert word in err


async def test_a_port_that_cannot_be_forwarded_is_said(tmp_path: Path) -> None:
    """With what kubectl complains of, and which right is needed."""
    path = pods_behind(9, tmp_path, 'echo \'{"data": {"k": "eA=="}}\'')
    script = (tmp_path / "kubectl").read_text().replace("pod/r-0 :9090", "pod/other")
    (tmp_path / "kubectl").write_text(script)
    status, _, err = await turnout("requests", PATH=path)
    assert status == 2
    assert "Error from server (Forbidden)" in err
    assert "pods/portforward" in err


@pytest.mark.cluster
async def test_the_routers_of_a_cluster_are_found(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """With nothing but a kubeconfig: the pod that is labeled as a router is found and asked."""
    async with mock_worker() as worker:
        file = tmp_path / "router.yaml"
        file.write_text(yaml.safe_dump(config([("aggregated", worker.url)])))
        labels = {"app.kubernetes.io/name": "turnout", "app.kubernetes.io/component": "router"}
        there = Namespace(cluster, namespace)
        probe = {"httpGet": {"path": "/readyz", "port": 9090}, "periodSeconds": 1}
        main = container(
            "turnout-router", "--config", str(file), "--shutdown-delay", "0", readinessProbe=probe
        )
        there.apply(pod("router", main, labels=labels))
        await asyncio.to_thread(there.wait_ready, "router")
        path = f"{cluster.binary('kubectl').parent}:{os.environ['PATH']}"
        status, out, err = await turnout(
            "requests", "--namespace", namespace, KUBECONFIG=str(cluster.kubeconfig), PATH=path
        )
    assert (status, out, err) == (0, "", "")
    assert shutil.which("kubectl", path=path)
