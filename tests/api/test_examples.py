"""The examples do what they say: they load, the API server takes them, and their keys open."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from turnout.api import load_budget, load_deployment, load_route

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
LOADERS = {"LLMDeployment": load_deployment, "LLMRoute": load_route, "TokenBudget": load_budget}


def read(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return manifest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_example_loads(path: Path) -> None:
    """Every example is a valid resource and opens with a comment for the newcomer who finds it."""
    text = path.read_text()
    manifest = yaml.safe_load(text)
    LOADERS[manifest["kind"]](manifest)
    assert text.startswith("# ")
    assert f"kubectl apply -f examples/{path.name}" in text


def test_targets_of_the_route_are_examples() -> None:
    """The canary leads to deployments that the examples bring along."""
    names = {manifest["metadata"]["name"] for manifest in map(read, (path.name for path in FILES))}
    assert {t.deployment for t in load_route(read("route-canary.yaml")).spec.targets} <= names


def test_key_in_the_comment_is_the_one_in_the_budget() -> None:
    """The curl command of the example works: its key has the digest that stands below."""
    digest = hashlib.sha256(b"sk-example-do-not-use").hexdigest()
    assert [key.sha256 for key in load_budget(read("token-budget.yaml")).spec.keys] == [digest]
    assert "Bearer sk-example-do-not-use" in (EXAMPLES / "token-budget.yaml").read_text()


@pytest.mark.cluster
@pytest.mark.usefixtures("turnout_crds")
@pytest.mark.parametrize("dry_run", ["--dry-run=server", "--dry-run=none"])
def test_examples_are_applied(cluster: Cluster, namespace: str, dry_run: str) -> None:
    """The API server takes all examples at once, first for trial and then for real."""
    applied = cluster.kubectl("apply", "--namespace", namespace, dry_run, "-f", str(EXAMPLES))
    assert len(applied.splitlines()) == len(FILES)
    if dry_run == "--dry-run=none":
        held = cluster.kubectl("get", "turnout", "--namespace", namespace, "-o", "name")
        assert len(held.splitlines()) == len(FILES)
