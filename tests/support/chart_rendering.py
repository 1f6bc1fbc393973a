"""The chart as Helm renders it, and changed copies of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from turnout_devcluster.cluster import Cluster

CHART = Path(__file__).resolve().parents[2] / "charts" / "turnout"
NAMESPACE = "turnout-system"


@dataclass(frozen=True, slots=True)
class Rendering:
    """Manifests as ``helm template`` writes them."""

    manifests: tuple[dict[str, Any], ...]

    def kind(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the manifests of *kind* by name."""
        return {m["metadata"]["name"]: m for m in self.manifests if m["kind"] == kind}

    def one(self, kind: str, name: str) -> dict[str, Any]:
        """Return one manifest."""
        return self.kind(kind)[name]

    def pod(self, deployment: str) -> dict[str, Any]:
        """Return the pod spec of a Deployment."""
        spec: dict[str, Any] = self.one("Deployment", deployment)["spec"]["template"]["spec"]
        return spec

    def container(self, deployment: str) -> dict[str, Any]:
        """Return the one container of a Deployment."""
        (container,) = self.pod(deployment)["containers"]
        result: dict[str, Any] = container
        return result


def render(
    cluster: Cluster, values: dict[str, Any] | None = None, *flags: str, release: str = "turnout"
) -> Rendering:
    """Render the chart with *values* over its own. Raise CommandError where Helm refuses them."""
    text = cluster.helm(
        *("template", release, str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.36.3"),
        *(*flags, "--values", "-"),
        stdin=json.dumps(values or {}),
    )
    return Rendering(tuple(document for document in yaml.safe_load_all(text) if document))


def copy_with_field(folder: Path, field: str) -> Path:
    """Return a copy of the chart whose LLMDeployment has another optional string in its spec."""

    def add(schema: dict[str, Any]) -> None:
        schema["properties"]["spec"]["properties"][field] = {"type": "string"}

    return _changed_copy(folder, add)


def copy_without_rules(folder: Path) -> Path:
    """Return a copy of the chart whose LLMDeployment has no CEL rules, as if an older version had not had them."""

    def strip(schema: dict[str, Any]) -> None:
        schema.pop("x-kubernetes-validations", None)
        for inner in (*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])):
            strip(inner)

    return _changed_copy(folder, strip)


def _changed_copy(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    chart = folder / "changed-chart"
    shutil.copytree(CHART, chart)
    path = chart / "files" / "crds" / "llmdeployments.yaml"
    definition = yaml.safe_load(path.read_text())
    change(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    path.write_text(yaml.safe_dump(definition))
    return chart


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every value that is no table; an empty table counts as a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)
