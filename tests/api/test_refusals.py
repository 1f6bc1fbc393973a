"""What is wrong in a manifest is refused with words that help, by the API server and by pydantic alike."""

from __future__ import annotations

import json
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from support.api_manifests import ACCEPTED, REFUSED, Manifest, Refused, aggregated, deployment
from support.api_sources import ACCEPTED_SOURCES, REFUSED_SOURCES
from turnout.api import InvalidResource, load_budget, load_deployment, load_route

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

ALL_REFUSED = [*REFUSED, *REFUSED_SOURCES]
ALL_ACCEPTED = {**ACCEPTED, **ACCEPTED_SOURCES}
LOADERS = {"LLMDeployment": load_deployment, "LLMRoute": load_route, "TokenBudget": load_budget}


def load(manifest: Manifest) -> Any:
    return LOADERS[manifest["kind"]](manifest)


@pytest.mark.parametrize("case", ALL_REFUSED, ids=lambda case: case.name)
def test_pydantic_refuses(case: Refused) -> None:
    """A program that reads a resource without an API server refuses it too, with the rule's message or the field's path."""
    with pytest.raises(InvalidResource) as refusal:
        load(case.manifest)
    assert (case.field or case.says) in str(refusal.value)


@pytest.mark.parametrize("name", ALL_ACCEPTED)
def test_pydantic_accepts(name: str) -> None:
    """What lies just inside every bound loads."""
    load(ALL_ACCEPTED[name])


@pytest.mark.cluster
@pytest.mark.usefixtures("turnout_crds")
@pytest.mark.parametrize("case", ALL_REFUSED, ids=lambda case: case.name)
def test_api_server_refuses(cluster: Cluster, case: Refused) -> None:
    """The API server itself refuses the manifest, and its message says what to write instead."""
    done = create(cluster, case.manifest)
    assert done.returncode == 1, f"{case.name} was accepted"
    assert case.says in done.stderr


@pytest.mark.cluster
@pytest.mark.usefixtures("turnout_crds")
def test_api_server_accepts(cluster: Cluster) -> None:
    """The API server accepts what lies just inside every bound."""
    manifests = list(ALL_ACCEPTED.values())
    accepted = verdicts(cluster, manifests)
    assert [name for name, verdict in zip(ALL_ACCEPTED, accepted, strict=True) if not verdict] == []


@pytest.mark.cluster
@pytest.mark.usefixtures("turnout_crds")
def test_both_judge_alike(cluster: Cluster) -> None:
    """Of manifests put together from odd values, pydantic accepts exactly those that the API server accepts."""
    chance = random.Random(20260131)  # noqa: S311 - the same manifests every time
    manifests = [odd_manifest(chance) for _ in range(250)]
    theirs = verdicts(cluster, manifests)
    ours = [loads(manifest) for manifest in manifests]
    differing = [manifest for manifest, a, b in zip(manifests, ours, theirs, strict=True) if a != b]
    assert differing == []
    assert 20 < sum(theirs) < 230, "the values are too tame or too wild to prove anything"


def odd_manifest(chance: random.Random) -> Manifest:
    """Return an LLMDeployment with a few fields set to values at and beyond their edges."""
    replicas = [{"min": a, "max": b} for a, b in ((1, 1), (1, 6), (2, 2), (4, 8), (3, 2), (0, 1), (6, 1000))]
    durations = ["1s", "0s", "0h0ms", "2m1s", "1s2m", "ms", "05ms", "1h", "5S", " 5s", "9" * 31 + "s"]
    ratios = ["1:1", "1:4", "2:1", "999:1", "1000:1", "1:0", "01:2", "1:2:3", "3:2"]
    values: dict[str, list[Any]] = {
        "spec.decode.replicas": replicas,
        "spec.decode.accelerator.count": [1, 4, 16, 17],
        "spec.scaling.maxAccelerators": [1, 2, 4, 16, 64],
        "spec.scaling.prefillToDecode.min": ratios,
        "spec.scaling.prefillToDecode.max": ratios,
        "spec.scaling.scaleDown.stabilization": durations,
        "spec.slo.timeToFirstToken": durations,
        "spec.slo.interTokenLatency": durations,
        "spec.model.servedNames": [[], ["a"], ["a", "a"], ["-a"], ["a."], ["a" * 96, "b"], ["ü"]],
        "spec.model.source": ["hf://a/b", "hf://a", "hf://a/b/c", "hf://a/b ", "s3://a/b"],
        "spec.model.maxLength": [255, 256, 2**20, 2**20 + 1],
        "spec.routing.localPrefillBelowTokens": [0, 256, 2**20 + 1],
        "spec.routing.policy": ["PrefixAware", "LeastLoaded", "RoundRobin"],
        "spec.routing.queueing": ["Engine", "Router", "router"],
        "metadata.name": ["a", "a" * 36, "a" * 37, "a-1", "1-a", "a.b"],
    }
    least = chance.choice([deployment, aggregated])
    fields = chance.sample(sorted(values), k=chance.randint(1, 4))
    changes = {field: chance.choice(values[field]) for field in fields}
    if least is deployment and chance.random() < 0.5:
        changes["spec.prefill.replicas"] = chance.choice(replicas)
    return least(changes)


def loads(manifest: Manifest) -> bool:
    try:
        load(manifest)
    except InvalidResource:
        return False
    return True


def verdicts(cluster: Cluster, manifests: list[Manifest]) -> list[bool]:
    """Return for each manifest whether the API server would create it: one kubectl call for all of them."""
    numbered = [
        {**manifest, "metadata": {**manifest["metadata"], "labels": {"case": str(number)}}}
        for number, manifest in enumerate(manifests)
    ]
    done = create(cluster, {"apiVersion": "v1", "kind": "List", "items": numbered})
    accepted = {int(line) for line in done.stdout.split()}
    assert accepted or done.returncode, done.stderr
    return [number in accepted for number in range(len(manifests))]


def create(cluster: Cluster, manifest: Manifest) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(cluster.binary("kubectl"), "create", "--dry-run=server", "-f", "-"),
            *("-o", r"jsonpath={.metadata.labels.case}{'\n'}"),
        ],
        input=json.dumps(manifest),
        capture_output=True,
        text=True,
        env=cluster.env(),
        timeout=120,
        check=False,
    )
