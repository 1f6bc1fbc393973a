"""Writes the pages of the reference that follow from the code: `python docs/generate.py`, with `--check` in `make check`.

resources.md follows from the CRDs, metrics.md from the catalog of metrics.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from turnout.api.crds import custom_resource_definitions
from turnout.api.rules import VALIDATIONS
from turnout.metrics import CATALOG, LABELS, Metric, Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FOLDER: Final = Path(__file__).parent / "reference"
_NOTE: Final = "<!-- Written by docs/generate.py: change {source}, then run `make reference`. -->\n"
_BOUNDS: Final = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
_LONG_DEFAULT: Final = 40
"""Characters above which the default of an object is left to its fields, which have their own."""


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {"resources.md": resources(custom_resource_definitions()), "metrics.md": metrics(CATALOG)}


def resources(definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the reference of all resources: every field with type, default, bounds, rules and meaning."""
    lines = [
        _NOTE.format(source="core/turnout/api"),
        _RESOURCES_HEAD,
    ]
    for definition in definitions.values():
        lines += _resource(definition["spec"])
    return "\n".join(lines) + "\n"


def metrics(catalog: tuple[Metric, ...]) -> str:
    """Return the reference of all metrics, by service."""
    lines = [_NOTE.format(source="core/turnout/metrics.py"), _METRICS_HEAD]
    for service in get_args(Service):
        lines += ["", f"## {_SERVICES[service][0]}", _SERVICES[service][1], ""]
        lines += ["| Metric | Type, unit | Labels | Meaning |", "|---|---|---|---|"]
        lines += [_metric(metric) for metric in catalog if metric.service == service]
    lines += ["", "## Labels", "", "| Label | Meaning |", "|---|---|"]
    lines += [f"| `{label}` | {meaning} |" for label, meaning in LABELS.items()]
    return "\n".join(lines) + "\n" + _METRICS_TAIL


def _resource(spec: Mapping[str, Any]) -> Iterator[str]:
    names, version = spec["names"], spec["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    yield from ("", f"## {names['kind']}", _sentence(schema["description"]), "")
    yield (
        f"`apiVersion: {spec['group']}/{version['name']}`, `kind: {names['kind']}`; "
        f"`kubectl get {names['plural']}` or `{'`, `'.join(names['shortNames'])}`."
    )
    columns = [
        f"**{column['name']}**" + (" (`-o wide`)" if column.get("priority") else "")
        for column in version["additionalPrinterColumns"]
    ]
    yield from ("", f"Columns: {', '.join(columns)}.")
    for part in ("spec", "status"):
        yield from _section(part, schema["properties"][part], names["kind"])


def _section(path: str, schema: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Return the table of the object at *path*, then those of the objects within."""
    yield from ("", f"### {kind} {path}", _sentence(schema.get("description", "")))
    rules = [rule["message"] for rule in schema.get(VALIDATIONS, ())]
    if rules:
        yield from ("", "Refused with these messages:", "", *(f"- {rule}" for rule in rules))
    yield from ("", "| Field | Type | Default | Meaning |", "|---|---|---|---|")
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        yield _field(name, field, required=name in required)
    for name, field in schema["properties"].items():
        if "properties" in field:
            yield from _section(f"{path}.{name}", field, kind)
        elif "properties" in field.get("items", {}):
            inner = {"description": field.get("description", ""), **field["items"]}
            yield from _section(f"{path}.{name}[]", inner, kind)


def _field(name: str, field: Mapping[str, Any], *, required: bool) -> str:
    meaning = [_sentence(field.get("description", "")), *_bounds(field)]
    if "properties" not in field:
        meaning += [f"Refused with: *{rule['message']}*." for rule in field.get(VALIDATIONS, ())]
    cells = (f"`{name}`", _type(field), _default(field, required=required), " ".join(filter(None, meaning)))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: Mapping[str, Any]) -> str:
    if field["type"] == "array":
        how = "set" if field.get("x-kubernetes-list-type") == "set" else "list"
        return f"{how} of {field['items']['type']}s"
    return str(field.get("format", field["type"]))


def _default(field: Mapping[str, Any], *, required: bool) -> str:
    if required:
        return "*required*"
    if "default" not in field:
        return ""
    text = json.dumps(field["default"], ensure_ascii=False)
    return "see its fields" if "properties" in field and len(text) > _LONG_DEFAULT else f"`{text}`"


def _bounds(field: Mapping[str, Any]) -> Iterator[str]:
    if "enum" in field:
        yield f"One of {', '.join(f'`{value}`' for value in field['enum'])}."
    bounds = [words.format(f"{field[key]:,}") for key, words in _BOUNDS.items() if key in field]
    if bounds:
        yield _sentence(" and ".join(bounds).capitalize())
    keys = field.get("x-kubernetes-list-map-keys")
    if keys:
        yield f"No two with the same `{'`, `'.join(keys)}`."


def _metric(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    meaning = " ".join(filter(None, (metric.help, metric.values)))
    return f"| `{metric.name}` | {metric.kind}, {metric.unit} | {labels} | {meaning} |"


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", ":")) else f"{text}."


_SERVICES: Final[Mapping[Service, tuple[str, str]]] = {
    "router": ("Router", "On port 9090 (`/metrics`)."),
    "operator": (
        "Operator",
        "On port 9091 (`/metrics`). Each replica has its own page; only the one with `turnout_operator_leader` 1 acts.",
    ),
    "worker": ("Worker", "On port 8000 (`/metrics`), beside those of the engine."),
    "node agent": (
        "Node agent of the dev cluster",
        "On the kubelet's port (10250, `/metrics`); only there, no real cluster has it.",
    ),
}

_RESOURCES_HEAD: Final = """# Resources
Every field of every resource, written from the models that the CRDs are written from. `kubectl explain llmd.spec` shows the
same in a terminal; the folder `examples` has whole objects, and [the resources: decisions](../design/resources.md) says why
they are as they are.

**Default** is what the API server fills in where a field is left out; a field without one is optional. An object that breaks
a bound or a rule is refused; a rule is quoted here as the API server's answer quotes it."""

_METRICS_HEAD: Final = """# Metrics
Every metric that Turnout itself exposes. The chart's pods carry `prometheus.io/scrape`, `prometheus.io/port` and
`prometheus.io/path`. The pages of router and operator list the deployments of all namespaces: see [security](../security.md)
before you open them.

Counters and histograms also have a series `..._created` with the time of their first sample. Histograms have `..._bucket`,
`..._sum` and `..._count`. Latencies that the router measures are in the deployment's time: real seconds times
`spec.engine.simulated.timeScale`."""

_METRICS_TAIL: Final = """
## Metrics of the engine
Workers expose vLLM's metrics under vLLM's names, also those of the simulated engine. Turnout reads these:

| Metric | Read by | For |
|---|---|---|
| `vllm:num_requests_running`, `vllm:num_requests_waiting` | operator, router | load, draining |
| `vllm:num_requests_waiting_by_reason{reason="deferred"}` | operator, router | requests whose KV cache is on its way are no load |
| `vllm:kv_cache_usage_perc` | operator, router | KV-cache utilization |
| `vllm:request_queue_time_seconds_sum`, `vllm:request_prefill_time_seconds_sum` | operator | how busy prefill is |
| `vllm:prefix_cache_queries_total`, `vllm:prefix_cache_hits_total`, `vllm:external_prefix_cache_hits_total`, `vllm:prompt_tokens_by_source_total` | router | prompt tokens that still have to be computed |
| `vllm:lora_requests_info` | router | which adapters a worker has in use |

## Queries to begin with
```promql
# Goodput of each deployment in the last five minutes, in percent
100 * sum by (deployment) (rate(turnout_router_good_total[5m])) / sum by (deployment) (rate(turnout_router_finished_total[5m]))

# 99th percentile of the time to first token
histogram_quantile(0.99, sum by (deployment, le) (rate(turnout_router_time_to_first_token_seconds_bucket[5m])))

# Requests refused because there was no room, by reason
sum by (deployment, reason) (rate(turnout_router_shed_total[5m]))

# Workers that are missing
sum by (deployment, role) (turnout_operator_desired_replicas - turnout_operator_ready_replicas)
```
"""


def main() -> int:
    """Write all pages; with `--check` write none and return 1 where one is stale."""
    texts = {_FOLDER / name: text for name, text in pages().items()}
    if sys.argv[1:] != ["--check"]:
        for path, text in texts.items():
            path.write_text(text)
        return 0
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        sys.stderr.write(f"docs/reference/{path.name} is stale: run `make reference`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
