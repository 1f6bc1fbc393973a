"""The chart's settings: each is described, each is checked, and each reaches what it is for."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from support.chart_rendering import CHART, NAMESPACE, leaves, render
from turnout import terms
from turnout.api.crds import custom_resource_definitions
from turnout_cli.routers import TOKEN_VOLUME
from turnout_devcluster.errors import CommandError
from turnout_router.fleet.peers.discovery import PORT_NAME

if TYPE_CHECKING:
    from support.chart_rendering import Rendering
    from turnout_devcluster.cluster import Cluster

VALUES = (CHART / "values.yaml").read_text()
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_versions_follow_the_project() -> None:
    """Chart, application and project have one version: what is released together is named alike."""
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (project, project)


def test_defaults_keep_the_schema() -> None:
    """values.yaml is valid under its own schema, and the schema is valid itself."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(yaml.safe_load(VALUES), SCHEMA)


def test_schema_and_values_name_the_same_settings() -> None:
    """Every setting of values.yaml stands in the schema and the other way round, so neither lies."""

    def settings(schema: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        if "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        if "properties" not in schema:
            return {path}
        return {one for key, part in schema["properties"].items() for one in settings(part, (*path, key))}

    def named(path: tuple[str, ...]) -> tuple[str, ...]:
        return path[: path.index("resources") + 1] if "resources" in path else path

    assert {named(path) for path in settings(SCHEMA)} - {("global",)} == {
        named(path) for path in leaves(yaml.safe_load(VALUES))
    }


def test_every_setting_has_prose_above_it() -> None:
    """values.yaml is the reference: nothing in it goes without a word."""
    lines = VALUES.splitlines()
    bare = [
        line.strip()
        for above, line in itertools.pairwise(lines)
        if ":" in line and not line.lstrip().startswith("#") and not above.lstrip().startswith("#")
    ]
    # Tables speak through what is in them; requests and limits are Kubernetes' own words.
    tables = {"crds:", "image:", "service:", "worker:"}
    assert [
        line
        for line in bare
        if line not in tables and not line.startswith(("requests:", "limits:", "repository:"))
    ] == []


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"rooter": {}}, "rooter"),
        ({"router": {"replica": 3}}, "replica"),
        ({"router": {"replicas": 0}}, "minimum"),
        ({"router": {"auth": "none"}}, "router/auth"),
        ({"router": {"shutdownGraceSeconds": "1m"}}, "shutdownGraceSeconds"),
        ({"router": {"peers": {"secretName": "My Secret"}}}, "secretName"),
        ({"router": {"admin": {"tokenSecretName": "-"}}}, "tokenSecretName"),
        ({"networkPolicy": {"metricsFrom": "monitoring"}}, "metricsFrom"),
        ({"router": {"extraArgs": ["verbose"]}}, "extraArgs"),
        ({"watchNamespaces": ["Team_A"]}, "watchNamespaces"),
        ({"fullnameOverride": "x" * 47}, "fullnameOverride"),
        ({"operator": {"image": {"repo": "mine"}}}, "repo"),
        ({"crds": {"keep": "yes"}}, "crds/keep"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
@pytest.mark.cluster
def test_wrong_setting_is_refused(cluster: Cluster, values: dict[str, Any], complaint: str) -> None:
    """A misspelt key or an impossible value stops Helm before anything is changed, and is named."""
    with pytest.raises(CommandError) as refusal:
        render(cluster, values)
    assert complaint in str(refusal.value)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"watchNamespaces": ["a", "b"], "router": {"auth": "required"}},
        {"crds": {"install": False}, "fullnameOverride": "t"},
        {"crds": {"keep": False}, "router": {"service": {"type": "LoadBalancer"}}},
        {"router": {"peers": {"secretName": "s", "networkPolicy": True}}},
        {"router": {"peers": {"enabled": False}}},
        {"router": {"admin": {"tokenSecretName": "t"}}, "networkPolicy": {"enabled": True}},
        {"networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {}}]}},
        {"router": {"admin": None}, "networkPolicy": None},
    ],
)
def test_lint(cluster: Cluster, values: dict[str, Any]) -> None:
    """`helm lint --strict` has nothing to complain about, whatever is set."""
    cluster.helm("lint", "--strict", str(CHART), "--values", "-", stdin=json.dumps(values))


@pytest.mark.cluster
@pytest.mark.parametrize("keep", [True, False])
def test_rendered_crds_are_the_models(cluster: Cluster, keep: bool) -> None:  # noqa: FBT001 - a case
    """Helm's templates change no number and no rule of the CRDs; they add labels and what uninstalling does."""
    rendered = render(cluster, {"crds": {"keep": keep}}).kind("CustomResourceDefinition")
    for definition in custom_resource_definitions().values():
        found = rendered[definition["metadata"]["name"]]
        assert found["spec"] == definition["spec"]
        policy = {"annotations": {"helm.sh/resource-policy": "keep"}} if keep else {}
        assert {key: value for key, value in found["metadata"].items() if key != "labels"} == {
            **definition["metadata"],
            **policy,
        }


@pytest.mark.cluster
def test_crds_can_be_left_to_others(cluster: Cluster) -> None:
    """With crds.install=false the release holds none."""
    assert render(cluster, {"crds": {"install": False}}).kind("CustomResourceDefinition") == {}


@pytest.mark.cluster
def test_rights_follow_the_watched_namespaces(cluster: Cluster) -> None:
    """There is no ClusterRole where namespaces are named, and no Role over users' resources where none are."""
    narrow = render(cluster, {"watchNamespaces": ["team-a", "team-b"]})
    assert narrow.kind("ClusterRole") == narrow.kind("ClusterRoleBinding") == {}
    where = [
        manifest["metadata"]["namespace"]
        for manifest in narrow.manifests
        if manifest["kind"] == "Role"
        and manifest["metadata"]["name"] == "turnout-router"
        and any("llmdeployments" in rule["resources"] for rule in manifest["rules"])
    ]
    assert where == ["team-a", "team-b"]
    (own,) = (
        manifest["rules"]
        for manifest in narrow.manifests
        if manifest["kind"] == "Role"
        and manifest["metadata"]["name"] == "turnout-router"
        and manifest["metadata"]["namespace"] not in where
    )
    # Keys that open every namespace: budgets of the release's own, and nothing else there.
    assert own == [
        {"apiGroups": ["turnout.dev"], "resources": ["tokenbudgets"], "verbs": ["get", "list", "watch"]}
    ]
    wide = render(cluster)
    assert set(wide.kind("ClusterRole")) == {"turnout-operator", "turnout-router"}


@pytest.mark.cluster
def test_settings_reach_the_pods(cluster: Cluster) -> None:
    """Each setting of operator and router arrives where Kubernetes or the program reads it."""
    own = {
        "replicas": 3,
        "image": {"repository": "mirror.example:5000/t", "tag": "v9"},
        "extraArgs": ["--admin-port=9999"],
        "resources": {"requests": {"cpu": "1"}},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "podAnnotations": {"team": "a"},
    }
    everything = render(
        cluster,
        {
            "watchNamespaces": ["team-a", "team-b"],
            "imagePullSecrets": [{"name": "pull"}],
            "imagePullPolicy": "Always",
            "operator": own,
            "router": {**own, "auth": "required", "shutdownGraceSeconds": 100},
            "worker": {"image": {"repository": "mirror.example:5000/w"}},
        },
    )
    for name in ("turnout-operator", "turnout-router"):
        deployment = everything.one("Deployment", name)
        pod, container = everything.pod(name), everything.container(name)
        assert deployment["spec"]["replicas"] == 3
        assert deployment["spec"]["template"]["metadata"]["annotations"]["team"] == "a"
        assert deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
        assert pod["imagePullSecrets"] == [{"name": "pull"}]
        assert pod["nodeSelector"] == {"disk": "fast"}
        assert pod["tolerations"] == [{"key": "spot", "operator": "Exists"}]
        assert container["image"] == "mirror.example:5000/t:v9"
        assert container["imagePullPolicy"] == "Always"
        # Helm lays values over the chart's own: a limit is left out by setting it to null.
        assert container["resources"]["requests"] == {
            "cpu": "1",
            "memory": container["resources"]["requests"]["memory"],
        }
        arguments = container["args"]
        assert [a for a in arguments if a.startswith("--watch")] == [
            "--watch-namespace=team-a",
            "--watch-namespace=team-b",
        ]
        assert arguments[-1] == "--admin-port=9999"
    assert "--worker-image=mirror.example:5000/w:0.1.0" in everything.container("turnout-operator")["args"]
    assert {"--auth=required", "--shutdown-grace=100"} <= set(everything.container("turnout-router")["args"])
    assert everything.pod("turnout-router")["terminationGracePeriodSeconds"] > 100


@pytest.mark.cluster
@pytest.mark.parametrize("program", ["turnout-operator", "turnout-router"])
def test_programs_know_the_arguments(cluster: Cluster, program: str) -> None:
    """The options that the chart sets exist in operator and router."""
    container = render(cluster, {"watchNamespaces": ["a"]}).container(program)
    assert container["command"] == [program]
    usage = subprocess.run(
        [Path(sys.executable).parent / program, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert [a for a in container["args"] if a.partition("=")[0] not in usage.split()] == []


@pytest.mark.cluster
def test_admin_port_stays_inside(cluster: Cluster) -> None:
    """Metrics and the fleet's state are on the Service inside the cluster only, never on a load balancer."""

    def ports(kind: str) -> set[int]:
        values = {"router": {"service": {"type": kind}}}
        return {p["port"] for p in render(cluster, values).one("Service", "turnout-router")["spec"]["ports"]}

    assert ports("ClusterIP") == {8080, 9090}
    assert ports("LoadBalancer") == ports("NodePort") == {8080}


@pytest.mark.cluster
def test_routers_find_each_other(cluster: Cluster) -> None:
    """The pods that routers look for are their own, with the port that is asked for, and they may look."""
    rendering = render(cluster, {"watchNamespaces": ["a"]}, release="prod")
    (asked,) = (
        argument.partition("=")[2]
        for argument in rendering.container("prod-turnout-router")["args"]
        if argument.startswith("--peers-pods=")
    )
    namespace, _, selector = asked.partition("/")
    pod = rendering.one("Deployment", "prod-turnout-router")["spec"]
    # The name of a label has a slash, too: only the first one parts.
    assert dict(part.split("=") for part in selector.split(",")) == pod["selector"]["matchLabels"]
    ports = rendering.container("prod-turnout-router")["ports"]
    assert {"name": PORT_NAME, "containerPort": terms.ROUTER_PEERS_PORT} in ports
    role = rendering.one("Role", "prod-turnout-router-peers")
    (rule,) = role["rules"]
    assert role["metadata"]["namespace"] == namespace == NAMESPACE
    assert (rule["resources"], rule["verbs"]) == (["pods"], ["get", "list", "watch"])
    (subject,) = rendering.one("RoleBinding", "prod-turnout-router-peers")["subjects"]
    assert subject["name"] == rendering.pod("prod-turnout-router")["serviceAccountName"]


@pytest.mark.cluster
def test_only_routers_reach_the_peers_port_where_that_is_asked_for(cluster: Cluster, namespace: str) -> None:
    """The API server takes the policy; of all ports it closes that one, and to all but routers."""
    assert render(cluster).kind("NetworkPolicy") == {}
    policy = render(cluster, {"router": {"peers": {"networkPolicy": True}}}).one(
        "NetworkPolicy", "turnout-router-peers"
    )
    del policy["metadata"]["namespace"]
    cluster.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(policy))
    everybody, routers = policy["spec"]["ingress"]
    open_ports = {
        port
        for part in everybody["ports"]
        for port in range(part["port"], part.get("endPort", part["port"]) + 1)
    }
    assert set(range(1, 65536)) - open_ports == {terms.ROUTER_PEERS_PORT}
    assert routers["ports"] == [{"port": terms.ROUTER_PEERS_PORT}]
    assert [one["podSelector"] for one in routers["from"]] == [policy["spec"]["podSelector"]]


def mounted(rendering: Rendering, flag: str) -> tuple[str, str]:
    """Return name and key of the Secret that is mounted where *flag* of the router points to."""
    (path,) = (
        argument.partition("=")[2]
        for argument in rendering.container("turnout-router")["args"]
        if argument.startswith(f"{flag}=")
    )
    mounts = rendering.container("turnout-router")["volumeMounts"]
    (mount,) = (m for m in mounts if path.startswith(f"{m['mountPath']}/"))
    (secret,) = (
        v["secret"] for v in rendering.pod("turnout-router")["volumes"] if v["name"] == mount["name"]
    )
    (item,) = secret["items"]
    assert path == f"{mount['mountPath']}/{item['path']}"
    assert mount["readOnly"] is True
    return secret["secretName"], item["key"]


SECRETS = {"--peers-secret-file": "turnout-router-peers", "--admin-token-file": "turnout-router-admin"}


@pytest.mark.cluster
def test_a_secret_and_a_token_are_made_where_none_is_named(cluster: Cluster) -> None:
    """By default neither port opens without one; what is made cannot be guessed."""
    one, other = render(cluster), render(cluster)
    assert set(one.kind("Secret")) == set(SECRETS.values())
    for flag, made in SECRETS.items():
        name, key = mounted(one, flag)
        assert name == made
        values = [base64.b64decode(r.one("Secret", name)["data"][key], validate=True) for r in (one, other)]
        assert values[0] != values[1]
        assert all(len(value) == 48 and value.isalnum() for value in values)
    volumes = [volume["name"] for volume in one.pod("turnout-router")["volumes"]]
    assert TOKEN_VOLUME in volumes, "turnout explain looks for it"


@pytest.mark.cluster
def test_secrets_of_the_users_own_take_the_place_of_made_ones(cluster: Cluster) -> None:
    """Named ones are mounted and none is made; without peers nothing of their secret is left."""
    named = render(cluster, {"router": {"peers": {"secretName": "s"}, "admin": {"tokenSecretName": "t"}}})
    assert named.kind("Secret") == {}
    assert mounted(named, "--peers-secret-file") == ("s", "secret")
    assert mounted(named, "--admin-token-file") == ("t", "token")
    alone = render(cluster, {"router": {"peers": {"enabled": False}}})
    assert set(alone.kind("Secret")) == {"turnout-router-admin"}
    assert "peers" not in json.dumps(alone.manifests)


@pytest.mark.cluster
def test_values_of_an_older_release_are_enough(cluster: Cluster) -> None:
    """`helm upgrade --reuse-values` brings none of the newer settings: their absence is their default."""
    older = render(cluster, {"router": {"admin": None}, "networkPolicy": None})
    assert set(older.kind("Secret")) == set(SECRETS.values())
    assert older.kind("NetworkPolicy") == {}


@pytest.mark.cluster
def test_ports_are_closed_where_that_is_asked_for(cluster: Cluster, namespace: str) -> None:
    """The API server takes the policies; each port is open to whom it is for, and none is closed by mistake."""
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    rendering = render(
        cluster,
        {
            "networkPolicy": {"enabled": True, "metricsFrom": [monitoring]},
            "router": {"peers": {"networkPolicy": True}},
        },
    )
    policies = rendering.kind("NetworkPolicy")
    assert set(policies) == {"turnout-operator", "turnout-router"}, "the looser one for peers would open 9090"
    for name, policy in policies.items():
        pod = rendering.one("Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod.items()
        del policy["metadata"]["namespace"]
        cluster.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(policy))
    everybody, admin, peers = policies["turnout-router"]["spec"]["ingress"]
    assert "from" not in everybody
    open_ports = {
        port
        for part in everybody["ports"]
        for port in range(part["port"], part.get("endPort", part["port"]) + 1)
    }
    assert set(range(1, 65536)) - open_ports == {terms.ROUTER_ADMIN_PORT, terms.ROUTER_PEERS_PORT}
    operators = {"podSelector": policies["turnout-operator"]["spec"]["podSelector"]}
    assert admin == {"ports": [{"port": terms.ROUTER_ADMIN_PORT}], "from": [operators, monitoring]}
    routers = {"podSelector": policies["turnout-router"]["spec"]["podSelector"]}
    assert peers == {"ports": [{"port": terms.ROUTER_PEERS_PORT}], "from": [routers]}
    assert policies["turnout-operator"]["spec"]["ingress"] == [
        {"ports": [{"port": terms.OPERATOR_ADMIN_PORT}], "from": [monitoring]}
    ]
    closed = render(cluster, {"networkPolicy": {"enabled": True}, "router": {"peers": {"enabled": False}}})
    assert closed.one("NetworkPolicy", "turnout-operator")["spec"]["ingress"] == []
    assert len(closed.one("NetworkPolicy", "turnout-router")["spec"]["ingress"]) == 2


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("release", "values", "prefix"),
    [
        ("turnout", {}, "turnout"),
        ("prod", {}, "prod-turnout"),
        ("my-turnout", {}, "my-turnout"),
        ("turnout", {"fullnameOverride": "t"}, "t"),
    ],
)
def test_names(cluster: Cluster, release: str, values: dict[str, Any], prefix: str) -> None:
    """Two releases do not collide; selectors pick the pods of their own release and component."""
    rendering = render(cluster, values, release=release)
    assert set(rendering.kind("Deployment")) == {f"{prefix}-operator", f"{prefix}-router"}
    for component in ("operator", "router"):
        deployment = rendering.one("Deployment", f"{prefix}-{component}")["spec"]
        budget = rendering.one("PodDisruptionBudget", f"{prefix}-{component}")["spec"]
        wanted = deployment["selector"]["matchLabels"]
        pod = deployment["template"]["spec"]
        assert pod["serviceAccountName"] in rendering.kind("ServiceAccount")
        assert wanted["app.kubernetes.io/instance"] == release
        assert wanted["app.kubernetes.io/component"] == component
        assert budget["selector"]["matchLabels"] == wanted
        assert wanted.items() <= deployment["template"]["metadata"]["labels"].items()
    arguments = rendering.container(f"{prefix}-operator")["args"]
    assert f"--router-service={prefix}-router" in arguments
    (lease,) = (argument.partition("=")[2] for argument in arguments if argument.startswith("--lease-name="))
    rules = rendering.one("Role", f"{prefix}-operator-lease")["rules"]
    assert [lease] in [rule.get("resourceNames") for rule in rules]
    service = rendering.one("Service", f"{prefix}-router")["spec"]["selector"]
    assert service == rendering.one("Deployment", f"{prefix}-router")["spec"]["selector"]["matchLabels"]


@pytest.mark.cluster
def test_pods_may_run_under_the_restricted_standard(cluster: Cluster, namespace: str) -> None:
    """The API server's own pod security admission has no objection to any pod of the chart."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/warn=restricted")
    for deployment in render(cluster).kind("Deployment").values():
        del deployment["metadata"]["namespace"]
        applied = subprocess.run(
            [cluster.binary("kubectl"), *("create", "--dry-run=server", "-n", namespace, "-f", "-")],
            input=json.dumps(deployment),
            capture_output=True,
            text=True,
            env=cluster.env(),
            timeout=60,
            check=True,
        )
        assert applied.stderr == ""


@pytest.mark.cluster
def test_notes_follow_the_settings(cluster: Cluster) -> None:
    """The notes name the commands that work for this release, and say what uninstalling keeps."""

    def notes(values: dict[str, Any]) -> str:
        return cluster.helm(
            *("install", "front", str(CHART), "--namespace", NAMESPACE, "--dry-run=client", "--values", "-"),
            stdin=json.dumps(values),
        ).partition("NOTES:")[2]

    usual = notes({})
    assert "-n turnout-system rollout status deployment/front-turnout-operator" in usual
    assert "port-forward service/front-turnout-router 8080:8080" in usual
    assert "keeps the CRDs" in usual
    assert "name 1 other(s) each" in usual
    assert "get secret front-turnout-router-admin -o jsonpath={.data.token}" in usual
    assert "/admin/peers" not in notes({"router": {"replicas": 1}})
    assert "EVERY LLMDeployment" in notes({"crds": {"keep": False}})
    assert "the CRDs are not part of this release" in notes({"crds": {"install": False}})
    guarded = notes(
        {"router": {"auth": "required", "service": {"type": "LoadBalancer"}}, "watchNamespaces": ["a"]}
    )
    assert "turnout key create" in guarded
    assert "port-forward service" not in guarded
    assert "only these namespaces are looked after: a" in guarded
