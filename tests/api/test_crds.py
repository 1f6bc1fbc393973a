"""The CRDs are what the models say, and the API server fills in what pydantic would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import Field
from typer.testing import CliRunner

from support.api_manifests import Manifest, aggregated, budget, deployment, route
from turnout.api import LLMDeployment, PoolStatus, load_budget, load_deployment, load_route
from turnout.api.crds import custom_resource_definitions, structural_schema
from turnout.api.meta import Model
from turnout_cli.crds import app, differences, rendered

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["crds", "charts/turnout/files/crds"])
def test_checkout_holds_what_the_models_say(folder: str) -> None:
    """Both copies are those that the models of this checkout make; `turnout crds` writes them anew."""
    assert differences(ROOT / folder) == []


def test_check_names_each_difference(tmp_path: Path) -> None:
    """A file that was edited, is missing or belongs to no CRD is named, and the exit status is 1."""
    write = ["--output", str(tmp_path)]
    assert CliRunner().invoke(app, write).exit_code == 0
    assert CliRunner().invoke(app, ["--check", *write]).exit_code == 0
    (tmp_path / "llmroutes.yaml").unlink()
    (tmp_path / "tokenbudgets.yaml").write_text("kind: Nothing\n")
    (tmp_path / "trains.yaml").touch()
    checked = CliRunner().invoke(app, ["--check", *write])
    assert checked.exit_code == 1
    assert "llmroutes.yaml is missing" in checked.output
    assert "tokenbudgets.yaml differs from the models" in checked.output
    assert "trains.yaml belongs to no model" in checked.output
    assert CliRunner().invoke(app, write).exit_code == 0
    assert differences(tmp_path) == []


def test_printed_form_is_one_stream() -> None:
    """Without a folder the CRDs are printed as one YAML stream for kubectl."""
    printed = CliRunner().invoke(app, []).stdout
    assert [document["metadata"]["name"] for document in yaml.safe_load_all(printed)] == [
        "llmdeployments.turnout.dev",
        "llmroutes.turnout.dev",
        "tokenbudgets.turnout.dev",
    ]


def test_generation_is_deterministic() -> None:
    """The same models give the same text, and what is written reads back as what was meant."""
    assert rendered() == rendered()
    assert {name: yaml.safe_load(text) for name, text in rendered().items()} == custom_resource_definitions()


def test_status_has_no_defaults() -> None:
    """A field that was not written into a status is absent: the API server must not make it up."""
    assert '"default"' not in json.dumps(structural_schema(LLMDeployment)["properties"]["status"])


def test_part_that_would_be_lost_is_refused() -> None:
    """A constraint that a structural schema cannot carry stops the generator instead of vanishing."""

    class Spec(Model):
        even: int = Field(multiple_of=2)

    class Odd(Model):
        spec: Spec

    with pytest.raises(ValueError, match="multipleOf has no place in a structural schema"):
        structural_schema(Odd)


def test_field_of_two_types_is_refused() -> None:
    """A field that may be a string or a number is no structural schema, and the generator says so."""

    class Spec(Model):
        either: int | str

    class Odd(Model):
        spec: Spec

    with pytest.raises(ValueError, match="a field has one type"):
        structural_schema(Odd)


def test_every_field_is_described() -> None:
    """`kubectl explain` has something to say about each field of each resource."""

    def silent(schema: dict[str, Any], path: str) -> list[str]:
        found = [] if "description" in schema else [path]
        for name, field in schema.get("properties", {}).items():
            found += silent(field, f"{path}.{name}")
        if schema.get("items", {}).get("type") == "object":
            found += silent(schema["items"], f"{path}[]")
        return found

    schemas = {
        name: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for name, crd in custom_resource_definitions().items()
    }
    described_by_kubernetes = ("apiVersion", "kind", "metadata")
    assert [
        path
        for name, schema in schemas.items()
        for path in silent(schema, name)
        if not path.endswith(described_by_kubernetes)
    ] == []


def test_summary_of_a_pool_follows_its_counts() -> None:
    """What kubectl shows of a pool is ready and desired replicas, whichever program writes the status."""
    assert PoolStatus(desired=3, replicas=3, ready=2).summary == "2/3"


@pytest.mark.cluster
@pytest.mark.usefixtures("turnout_crds")
@pytest.mark.parametrize("manifest", [deployment(), aggregated(), route(), budget()], ids=lambda m: m["kind"])
def test_api_server_fills_in_what_pydantic_would(cluster: Cluster, manifest: Manifest) -> None:
    """Defaults of the API server and of pydantic are the same, down to the leaves."""
    load = {"LLMDeployment": load_deployment, "LLMRoute": load_route, "TokenBudget": load_budget}
    stored = json.loads(
        cluster.kubectl("create", "--dry-run=server", "-f", "-", "-o", "json", stdin=json.dumps(manifest))
    )
    ours = load[manifest["kind"]](manifest)
    assert stored["spec"] == ours.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert "status" not in stored


@pytest.mark.cluster
@pytest.mark.usefixtures("turnout_crds")
def test_health_at_a_glance(cluster: Cluster, namespace: str) -> None:
    """`kubectl get llmd` shows readiness, pools, goodput and model; -o wide also revision, mode and message."""
    inside = ("--namespace", namespace)
    cluster.kubectl("apply", *inside, "-f", "-", stdin=json.dumps(deployment()))
    status = {
        "observedGeneration": 1,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Serving",
                "message": "serves case",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            }
        ],
        "prefill": PoolStatus(desired=2, replicas=2, ready=1).model_dump(),
        "decode": PoolStatus(desired=3, replicas=3, ready=3).model_dump(),
        "goodputPercent": 97,
        "revision": "0a1b2c3d",
    }
    patch = ("patch", "llmd", "case", *inside, "--subresource=status", "--type=merge", "-p")
    cluster.kubectl(*patch, json.dumps({"status": status}))
    head, row = cluster.kubectl("get", "llmd", *inside).splitlines()
    assert head.split() == ["NAME", "READY", "PREFILL", "DECODE", "GOODPUT%", "MODEL", "AGE"]
    assert row.split()[:6] == ["case", "True", "1/2", "3/3", "97", "hf://meta-llama/Llama-3.1-8B-Instruct"]
    wide = cluster.kubectl("get", "turnout", *inside, "-o", "wide")
    assert "0a1b2c3d" in wide
    assert "Automatic" in wide
    assert "serves case" in wide


@pytest.mark.cluster
@pytest.mark.usefixtures("turnout_crds")
def test_status_stands_apart_from_spec(cluster: Cluster, namespace: str) -> None:
    """A client that may write the spec cannot write the status: it is a subresource."""
    manifest = {**deployment(), "status": {"goodputPercent": 100}}
    inside = ("--namespace", namespace)
    cluster.kubectl("apply", *inside, "-f", "-", stdin=json.dumps(manifest))
    assert "status" not in json.loads(cluster.kubectl("get", "llmd", "case", *inside, "-o", "json"))
