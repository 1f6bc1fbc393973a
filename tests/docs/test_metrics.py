"""The catalog of metrics is complete: what is named anywhere is in it, and what is in it is exposed as described."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import httpx
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, config, running_router
from support.worker_process import free_port, running_worker
from turnout.metrics import CATALOG, LABELS, ROUTER_LOCAL_PREFILLS, ROUTER_RETRIES, Metric
from turnout.routing.candidates import LocalReason
from turnout_devcluster.node.failures import TaskFailures
from turnout_operator.metrics import Metrics
from turnout_router.errors import UpstreamFault
from turnout_router.settings import PeerSettings

if TYPE_CHECKING:
    from turnout.metrics import Service

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"\bturnout_(?:router|operator|worker|node|simulated)_[a-z0-9_]*[a-z0-9]\b")
"""A metric's name in a text; packages are not followed by an underscore."""
OF_SERIES = re.compile(r"_(bucket|sum|count|created)$")


def of(service: Service) -> dict[str, Metric]:
    return {metric.name: metric for metric in CATALOG if metric.service == service}


def check(page: str, service: Service) -> None:
    """Compare a metrics page with the catalog: the same names, kinds, help and labels; vLLM's own are left out."""
    found = {}
    for family in text_string_to_metric_families(page):
        if not family.name.startswith("turnout_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = family
    # prometheus_client says when a counter began in a family of its own, a gauge.
    found = {name: family for name, family in found.items() if not name.endswith("_created")}
    expected = of(service)
    assert found.keys() == expected.keys()
    for name, family in found.items():
        metric = expected[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help), name
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels), name


def test_every_metric_that_is_named_is_in_the_catalog() -> None:
    """A dashboard, a page or a reader in the code that names a metric which nothing exposes is wrong."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    known = {metric.name for metric in CATALOG}
    unknown = {}
    for path in map(Path, filter(None, listed.split("\0"))):
        if path.suffix not in {".md", ".py", ".yaml", ".yml", ".tpl", ".txt", ".json", ".toml"}:
            continue
        if path.parts[0] == "tests" or not (ROOT / path).is_file():
            continue
        for name in NAMED.findall((ROOT / path).read_text()):
            series = OF_SERIES.sub("", name)
            if series not in known:
                unknown[name] = str(path)
    assert not unknown


def test_the_catalog_is_consistent() -> None:
    """Names are unique and end as Prometheus wants, and every label is explained."""
    assert len({metric.name for metric in CATALOG}) == len(CATALOG)
    for metric in CATALOG:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        if metric.unit == "seconds":
            assert metric.name.removesuffix("_total").endswith("_seconds"), metric.name
        for label in metric.labels:
            assert label in LABELS or f"`{label}`:" in metric.values, (metric.name, label)


def test_the_reasons_of_retries_and_local_prefills_are_all_listed() -> None:
    """The reference lists each value of a label whose values the code lists."""
    for metric, values in ((ROUTER_RETRIES, UpstreamFault), (ROUTER_LOCAL_PREFILLS, LocalReason)):
        assert set(re.findall(r"`(\w+)`", metric.values)) - {"reason"} == set(get_args(values))


async def test_a_router_exposes_what_the_catalog_says(tmp_path: Path) -> None:
    """With everything on (other routers, KV events, a queue), after a request."""
    async with mock_worker() as worker:
        content = config([("aggregated", worker.url)], policy="PrefixAware", queueing="Router")
        content["deployments"][0]["backends"][0]["kvEvents"] = {"port": free_port()}
        peers = PeerSettings(free_port(), (("127.0.0.1", free_port()),))
        async with running_router(tmp_path, content, peers=peers) as r:
            assert (await r.chat()).status_code == 200
            assert await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT) == 1
            check((await r.admin.get("/metrics")).text, "router")


def test_an_operator_exposes_what_the_catalog_says() -> None:
    """All of it, once everything that has labels has been counted."""
    metrics = Metrics()
    for metric in (metrics.desired, metrics.ready):
        metric.labels("default/llama", "decode").set(1)
    metrics.count_request("get", "pods", 200)
    metrics.unreadable.labels("default", "pods").set(1)
    metrics.decisions.labels("default/llama", "up", "").inc()
    check(generate_latest(metrics.registry).decode(), "operator")


def test_a_worker_exposes_what_the_catalog_says() -> None:
    """Beside vLLM's metrics."""
    with running_worker() as worker:
        check(httpx.get(f"{worker.url}/metrics").text, "worker")


def test_a_node_agent_exposes_what_the_catalog_says() -> None:
    """On the kubelet's port."""
    check(TaskFailures().exposition(), "node agent")
