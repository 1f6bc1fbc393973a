"""Addresses, Services, logs through kubectl, and the nodes themselves."""

from __future__ import annotations

import json
import socket
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.node_pods import Namespace, pod, server, shell
from turnout_devcluster.errors import CommandError
from turnout_devcluster.node.failures import TASKS

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster

PROBE = {"httpGet": {"port": "web"}, "periodSeconds": 1}


@pytest.fixture
def ns(cluster: Cluster, namespace: str) -> Namespace:
    return Namespace(cluster, namespace)


def _service(name: str, **selector: str) -> dict[str, Any]:
    spec = {"selector": selector, "ports": [{"port": 8080, "targetPort": "web"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def _ask(address: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{address}:8080/", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError) as error:
        return repr(error)


def test_service_leads_to_ready_pods_in_turn(ns: Namespace) -> None:
    """A cluster IP is reachable from the machine, shares connections out, and refuses without a ready pod."""
    ns.apply(
        pod("a", server("ready", readinessProbe=PROBE), labels={"app": "web"}),
        pod("b", server("ready", readinessProbe=PROBE), labels={"app": "web"}),
        pod("c", server(readinessProbe=PROBE), labels={"app": "web"}),
        _service("web", app="web"),
        _service("none", app="none"),
    )
    ns.wait_ready("a")
    ns.wait_ready("b")
    address = ns.get("web", "service")["spec"]["clusterIP"]
    ns.wait(lambda: _ask(address) in {"a", "b"}, "the service answers")
    assert sorted(_ask(address) for _ in range(4)) == ["a", "a", "b", "b"]
    nowhere = ns.get("none", "service")["spec"]["clusterIP"]
    assert _ask(nowhere).startswith(("URLError", "Remote", "Connection"))  # refused, or closed at once
    ns.kubectl("delete", "service", "web")

    def refused() -> bool:
        try:
            socket.create_connection((address, 8080), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    ns.wait(refused, "nothing listens any more")


def test_pods_have_addresses_of_their_own(ns: Namespace) -> None:
    """Two pods listen on the same port, each at its own address, and a freed address is not used at once."""
    ns.apply(*(pod(name, server("ready", readinessProbe=PROBE)) for name in ("a", "b")))
    ns.wait_ready("a")
    ns.wait_ready("b")
    first = {ns.get(name)["status"]["podIP"] for name in ("a", "b")}
    assert len(first) == 2
    ns.kubectl("delete", "pod", "a")
    ns.apply(pod("a", server("ready", readinessProbe=PROBE)))
    ns.wait_ready("a")
    assert ns.get("a")["status"]["podIP"] not in first


def test_logs_through_kubectl(ns: Namespace) -> None:
    """The real kubectl logs works: whole, tail, follow to the end; what is not kept is refused clearly."""
    ns.apply(pod("talk", shell("for i in 1 2 3; do echo line $i; sleep 0.3; done"), restartPolicy="Never"))
    ns.wait(lambda: ns.phase("talk") in {"Running", "Succeeded"}, "it runs")
    assert ns.kubectl("logs", "-f", "talk").splitlines() == ["line 1", "line 2", "line 3"]
    assert ns.kubectl("logs", "talk", "--tail=1") == "line 3\n"
    with pytest.raises(CommandError, match="keeps no time of a line"):
        ns.kubectl("logs", "talk", "--timestamps")
    ns.apply(pod("run", shell("exec sleep 600")))
    ns.wait_ready("run")
    with pytest.raises(CommandError, match="no exec into its containers"):
        ns.kubectl("exec", "run", "--", "true")


def test_nodes_carry_what_scheduling_needs(cluster: Cluster) -> None:
    """Nodes are Ready, hold one product each, and the scheduler counts their accelerators."""
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    products = {n["metadata"]["labels"]["nvidia.com/gpu.product"]: n["status"]["capacity"] for n in nodes}
    assert products["NVIDIA-H100-80GB-HBM3"]["nvidia.com/gpu"] == "64"
    assert products["NVIDIA-H200"]["nvidia.com/gpu"] == "8"
    assert {n["metadata"]["name"] for n in nodes} == {"h100-sxm-0", "h100-sxm-1", "h200-sxm-0", "h200-sxm-1"}


def test_pod_that_wants_more_than_any_node_has(ns: Namespace) -> None:
    """A pod that asks for more accelerators than a node holds stays unschedulable."""
    ns.apply(pod("greedy", shell("sleep 600", resources={"limits": {"nvidia.com/gpu": "65"}})))
    ns.wait(lambda: "Insufficient nvidia.com/gpu" in ns.events("greedy"), "the scheduler's event")


def test_many_pods_start(ns: Namespace) -> None:
    """Thirty pods of a Deployment become ready, and go away with it."""
    template = {"metadata": {"labels": {"app": "many"}}, "spec": pod("x", shell("exec sleep 600"))["spec"]}
    ns.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "many"},
            "spec": {"replicas": 30, "selector": {"matchLabels": {"app": "many"}}, "template": template},
        }
    )
    ns.kubectl("rollout", "status", "deployment/many", "--timeout=50s")
    ns.kubectl("delete", "deployment", "many")
    ns.wait(lambda: not ns.kubectl("get", "pods", "-o", "name").strip(), "all pods are gone")


def _agent(cluster: Cluster) -> tuple[str, ssl.SSLContext]:
    """Return the URL of an agent's metrics, and TLS that shows it nothing and believes everything."""
    node = json.loads(cluster.kubectl("get", "nodes", "--output", "json"))["items"][0]["status"]
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    address = f"{node['addresses'][0]['address']}:{node['daemonEndpoints']['kubeletEndpoint']['Port']}"
    return f"https://{address}/metrics", tls


def test_the_agents_port_wants_a_certificate(cluster: Cluster) -> None:
    """Without a client certificate of the cluster's authority the kubelet's port answers nothing."""
    url, tls = _agent(cluster)
    with pytest.raises(httpx.TransportError):  # the refusal, or the end of the connection behind it
        httpx.get(url, verify=tls)


def test_the_agent_serves_what_its_tasks_have_raised(cluster: Cluster) -> None:
    """The kubelet's port has /metrics for a holder of a client certificate; a healthy agent counts no failure."""
    url, tls = _agent(cluster)
    tls.load_cert_chain(cluster.files.pki / "admin.crt", cluster.files.pki / "admin.key")
    page = httpx.get(url, verify=tls).raise_for_status().text
    samples = [line for line in page.splitlines() if not line.startswith("#")]
    assert len(samples) == len(TASKS)
    assert all(line.startswith("turnout_node_task_failures_total{task=") for line in samples)
    assert all(line.endswith(" 0") for line in samples), page
