"""From a pod's specification to processes: quantities, references, variables, volumes, nodes; all pure."""

from __future__ import annotations

import base64
import ipaddress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnout_devcluster.node.addresses import AddressPool
from turnout_devcluster.node.environment import environment, referenced
from turnout_devcluster.node.errors import ConfigurationError
from turnout_devcluster.node.fields import PodFacts
from turnout_devcluster.node.forward import Listening, backends, routes_of
from turnout_devcluster.node.model import Refusal
from turnout_devcluster.node.nodes import parse_accelerators, plan_nodes
from turnout_devcluster.node.plan import ContainerPlan, PodFolder, plan_container, refused
from turnout_devcluster.node.quantities import in_units, quantity
from turnout_devcluster.node.references import Rewriter, expand
from turnout_devcluster.node.volumes import File, TokenRequest, token_requests, volume_files

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"kind": "ConfigMap", "data": {"a": "1", "b": "2"}}
SECRET = {"kind": "Secret", "data": {"p": base64.b64encode(b"s").decode()}}
OBJECTS = {("ConfigMap", "config"): CONFIG, ("Secret", "secret"): SECRET}


def _facts(**spec: Any) -> PodFacts:
    pod = {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": 'x"y'}},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "250m"}}}], **spec},
    }
    return PodFacts(pod, "127.64.1.1", "127.64.0.1", {"cpu": "8", "memory": "1Gi"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("250m", Fraction(1, 4)),
        ("1.5Gi", 3 * 2**29),
        ("2k", 2000),
        ("1e3", 1000),
        (".5", Fraction(1, 2)),
        ("3E", 3 * 10**18),
    ],
)
def test_quantities(text: str, value: Fraction) -> None:
    """Quantities are read exactly."""
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "1 Gi", "one", "1gi", "1.2.3", "--1"])
def test_what_is_no_quantity(text: str) -> None:
    """Anything else is refused with the form that is meant."""
    with pytest.raises(ValueError, match="such as 500m or 2Gi"):
        quantity(text)


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_units_round_up(amount: int, divisor: int) -> None:
    """A resourceFieldRef rounds up, so that a container never sees less than there is."""
    units = in_units(str(amount), str(divisor))
    assert (units - 1) * divisor < amount <= units * divisor


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$(B)", "$(B)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("$$", "$"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    """Known names are replaced, unknown ones stay, two dollar signs are one."""
    assert expand(text, {"A": "1"}) == expanded


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("/etc/app", "/R/etc/app"),
        ("/etc/app/x.yaml", "/R/etc/app/x.yaml"),
        ("--config=/etc/app/x", "--config=/R/etc/app/x"),
        ("cat /etc/app/x /data", "cat /R/etc/app/x /R/data"),
        ("/etc/application", "/etc/application"),
        ("http://host/data", "http://host/data"),
        ("/srv/etc/app", "/srv/etc/app"),
        ("/etc/app/nested/x:/data", "/R/etc/app/nested/x:/R/data"),
        ("open('/data/x')", "open('/R/data/x')"),
        ("plain", "plain"),
    ],
)
def test_paths_under_mounts_are_moved(text: str, moved: str) -> None:
    """Whole paths under a mount move below the pod's root, look-alikes do not."""
    assert Rewriter("/R", ("/etc/app", "/etc/app/nested", "/data/"))(text) == moved


def test_variables_in_their_order() -> None:
    """The node's, then envFrom, then env: later ones win and see those before them."""
    container = {
        "name": "c",
        "envFrom": [{"configMapRef": {"name": "config"}, "prefix": "C_"}, {"secretRef": {"name": "secret"}}],
        "env": [{"name": "p", "value": "$(p)$(C_a)"}, {"name": "BASE", "value": "$(BASE)+"}],
    }
    found = environment(container, _facts(), OBJECTS, {"BASE": "b"})
    assert found == {"BASE": "b+", "C_a": "1", "C_b": "2", "p": "s1"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"configMapKeyRef": {"name": "no", "key": "a"}}, 'configmap "no" not found'),
        ({"secretKeyRef": {"name": "secret", "key": "q"}}, "no key q in Secret secret"),
        ({"fieldRef": {"fieldPath": "status.qosClass"}}, "fieldRef status.qosClass is not known here"),
        ({"resourceFieldRef": {"resource": "cpu"}}, "write limits.NAME or requests.NAME"),
        ({"fileKeyRef": {}}, "valueFrom fileKeyRef is not supported"),
    ],
)
def test_variables_that_cannot_be_had(source: dict[str, Any], message: str) -> None:
    """A reference that leads nowhere refuses the container and says what is missing."""
    found = environment({"name": "c", "env": [{"name": "X", "valueFrom": source}]}, _facts(), OBJECTS, {})
    assert isinstance(found, Refusal)
    assert found.reason == "CreateContainerConfigError"
    assert message in found.message


@pytest.mark.parametrize(
    ("reference", "value"),
    [("limits.cpu", "1"), ("requests.cpu", "1"), ("limits.memory", str(2**30)), ("requests.memory", "0")],
)
def test_resources_without_a_limit_are_the_nodes(reference: str, value: str) -> None:
    """A limit that is not set is what the node has, a request that is not set is the limit or nothing."""
    env = [{"name": "X", "valueFrom": {"resourceFieldRef": {"resource": reference}}}]
    assert environment({"name": "c", "env": env}, _facts(), {}, {}) == {"X": value}


def test_objects_that_a_pod_names_are_all_found() -> None:
    """Variables, envFrom and volumes, projected ones too, name what is to be read."""
    ref = {"name": "v", "key": "k"}
    pod = {
        "spec": {
            "initContainers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": ref}}]}],
            "containers": [
                {
                    "env": [{"name": "A", "valueFrom": {"configMapKeyRef": ref}}, {"name": "B"}],
                    "envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "from"}}],
                }
            ],
            "volumes": [
                {"configMap": {"name": "vol"}},
                {"secret": {"secretName": "vol"}},
                {"emptyDir": {}},
                {"projected": {"sources": [{"secret": {"name": "pro"}}, {"configMap": {"name": "pro"}}]}},
            ],
        }
    }
    kinds = ("ConfigMap", "Secret")
    assert referenced(pod) == {(k, n) for k in kinds for n in ("v", "from", "vol", "pro")}


def test_volume_content() -> None:
    """Items choose and rename keys, modes are kept, tokens are for their owner alone."""
    request = TokenRequest("me", 600)
    volume = {
        "name": "all",
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"configMap": {"name": "config", "items": [{"key": "a", "path": "deep/a", "mode": 0o400}]}},
                {"secret": {"name": "secret"}},
                {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                {"serviceAccountToken": {"path": "t", "audience": "me", "expirationSeconds": 600}},
            ],
        },
    }
    assert token_requests({"spec": {"volumes": [volume]}}) == {request}
    assert volume_files(volume, _facts(), OBJECTS, {request: "jwt"}) == {
        "deep/a": File(b"1", 0o400),
        "p": File(b"s", 0o440),
        "l": File(b'app="x\\"y"', 0o440),
        "t": File(b"jwt", 0o600),
    }


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", ""])
def test_volume_paths_stay_inside(path: str) -> None:
    """An item cannot be placed outside its volume."""
    volume = {"name": "v", "configMap": {"name": "config", "items": [{"key": "a", "path": path}]}}
    found = volume_files(volume, _facts(), OBJECTS, {})
    assert isinstance(found, Refusal)
    assert "leaves its volume" in found.message


def test_container_as_a_process() -> None:
    """Arguments are expanded and moved under the mounts; values that the node gave stay as they are."""
    container = {
        "name": "c",
        "command": ["serve", "$(MODE)"],
        "args": ["--config=/etc/app/c.yaml"],
        "env": [{"name": "MODE", "value": "fast"}, {"name": "DATA", "value": "/data/x"}],
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/app"},
            {"name": "empty", "mountPath": "/data", "subPathExpr": "$(MODE)"},
        ],
        "workingDir": "/data",
    }
    plan = plan_container(container, _facts(), OBJECTS, {"HOME": "/data/home"}, PodFolder("/pods/p"))
    assert isinstance(plan, ContainerPlan)
    assert plan.argv == ("serve", "fast", "--config=/pods/p/root/c/etc/app/c.yaml")
    assert plan.env["DATA"] == "/pods/p/root/c/data/x"
    assert plan.env["HOME"] == "/data/home"
    assert plan.cwd == "/pods/p/root/c/data"
    assert [(m.path, m.source) for m in plan.mounts] == [
        ("/data", "/pods/p/volumes/empty/fast"),
        ("/etc/app", "/pods/p/volumes/config/."),
    ]


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({}, "pulls no images: say the command"),
        ({"args": ["x"]}, "say the command"),
        ({"command": ["x"], "workingDir": "/app"}, "workingDir /app is in an image"),
        (
            {"command": ["x"], "volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "../b"}]},
            "leaves its volume",
        ),
    ],
)
def test_containers_that_cannot_be_processes(container: dict[str, Any], message: str) -> None:
    """What only an image could give is refused with what to do instead."""
    plan = plan_container({"name": "c", **container}, _facts(), {}, {}, PodFolder("/p"))
    assert isinstance(plan, Refusal)
    assert message in plan.message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"hostNetwork": True}, "hostNetwork is not supported"),
        (
            {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
            "has no persistentVolumeClaim",
        ),
        ({"containers": [{"name": "c", "livenessProbe": {"grpc": {"port": 1}}}]}, "livenessProbe by gRPC"),
        ({"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/"}]}]}, "mounted at /"),
        ({"containers": [{"name": "c", "volumeDevices": [{}]}]}, "no block devices"),
        ({"containers": [{"name": "c", "lifecycle": {"stopSignal": "SIGQUIT"}}]}, "only SIGTERM"),
    ],
)
def test_pods_that_cannot_be_run(spec: dict[str, Any], message: str) -> None:
    """What would change a pod's meaning and cannot be given is refused; a plain pod is not."""
    assert [r.message for r in refused(_facts(**spec).pod) if message in r.message]
    assert not list(refused(_facts().pod))


def test_nodes_hold_one_product_each() -> None:
    """Each accelerator type gets as many nodes as asked for, each with its own address."""
    plans = plan_nodes("127.70.0.0/16", 2, parse_accelerators("H100-SXM=16, H200-SXM=8"))
    assert [(p.name, p.address, p.accelerators) for p in plans] == [
        ("h100-sxm-0", "127.70.0.1", 16),
        ("h100-sxm-1", "127.70.0.2", 16),
        ("h200-sxm-0", "127.70.0.3", 8),
        ("h200-sxm-1", "127.70.0.4", 8),
    ]
    assert [p.name for p in plan_nodes("127.70.0.0/16", 2, {})] == ["node-0", "node-1"]


@pytest.mark.parametrize("text", ["H100", "H100-SXM=0", "H100-SXM=x", "B9000=1", "CPU=1"])
def test_accelerators_that_do_not_exist(text: str) -> None:
    """A wrong accelerator is refused with the known ones."""
    with pytest.raises(ConfigurationError, match="such as H100-SXM=16, where TYPE is one of H100-SXM"):
        parse_accelerators(text)


@pytest.mark.parametrize("subnet", ["10.0.0.0/16", "127.0.0.0/8", "nonsense", "127.70.0.1/16"])
def test_subnets_that_are_none(subnet: str) -> None:
    """Anything but a /16 of loopback is refused."""
    with pytest.raises(ConfigurationError, match="write a /16 of loopback"):
        plan_nodes(subnet, 1, {})


def test_addresses_are_not_used_again_at_once(tmp_path: Path) -> None:
    """A freed address comes last, also for the next agent, and a kept one not at all."""
    network = ipaddress.IPv4Network("127.70.0.0/16")
    pool = AddressPool(network, tmp_path / "cursor")
    first = pool.take()
    assert first == "127.70.1.1"
    pool.free(first)
    assert pool.take() == "127.70.1.2"
    again = AddressPool(network, tmp_path / "cursor")
    again.keep("127.70.1.3")
    assert again.take() == "127.70.1.4"
    taken = {again.take() for _ in range(1000)}
    assert len(taken) == 1000
    assert all(ipaddress.IPv4Address(a) < ipaddress.IPv4Address("127.70.128.0") for a in taken)


def _pod(name: str, *, ready: bool = True, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "n", "labels": {"app": "web"}, **metadata},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8000}]}]},
        "status": {
            "podIP": f"127.70.1.{ord(name)}",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def test_services_lead_to_ready_pods_only() -> None:
    """A Service leads to pods of its namespace that match, are ready and are not on their way out."""
    spec = {
        "clusterIP": "127.70.128.9",
        "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": "http"}],
    }
    service = {"metadata": {"name": "s", "namespace": "n"}, "spec": spec}
    headless = {"metadata": {"name": "h", "namespace": "n"}, "spec": {**spec, "clusterIP": "None"}}
    foreign = {"metadata": {"name": "f", "namespace": "n"}, "spec": {**spec, "clusterIP": "10.0.0.1"}}
    kubernetes = {
        "metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": "127.70.128.1", "ports": [{"port": 443, "targetPort": 6443}]},
    }
    network = ipaddress.IPv4Network("127.70.0.0/16")
    routes = routes_of([service, headless, foreign, kubernetes], network, ("127.70.0.1", 6443))
    api, web = Listening("default/kubernetes", "127.70.128.1", 443), Listening("n/s", "127.70.128.9", 80)
    assert routes.keys() == {api, web}
    pods = [
        _pod("b"),
        _pod("a"),
        _pod("c", ready=False),
        _pod("d", deletionTimestamp="2026-01-01T00:00:00Z"),
        _pod("e", namespace="other"),
        _pod("f", labels={"app": "other"}),
    ]
    assert backends(routes[web], pods) == [("127.70.1.97", 8000), ("127.70.1.98", 8000)]
    assert backends(routes[api], []) == [("127.70.0.1", 6443)]
