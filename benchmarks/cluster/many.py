"""Many LLMDeployments on the dev cluster, most of them without a node: what they cost the operator that acts."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import yaml
from installed import EXAMPLE, until
from processes import Usage, pid_at, usage

from turnout.terms import LABEL_DEPLOYMENT
from turnout_devcluster import apiclient
from turnout_operator.load.collector import Collector, Target
from turnout_operator.observe.store import Key
from turnout_operator.plan.pods import is_ready
from turnout_runtime.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from figures import Figures
    from installed import Installed

NAMESPACE = "many"
COUNT = 500
POOLS = 2 * COUNT
"""Each deployment has a prefill and a decode pool of one replica."""
IDLE_SECONDS = 120.0
QUIET_SECONDS = 10.0
"""Nothing is left to do when the operator has used less than `QUIET_SHARE` for so long."""
QUIET_SHARE = 0.1
"""Of a core."""
READINGS = 300
DEADLINE_SECONDS = 600.0
WHAT_IS_MADE = (
    "/apis/turnout.dev/v1alpha1/{}/llmdeployments",
    "/apis/apps/v1/{}/deployments",
    "/apis/apps/v1/{}/replicasets",
    "/api/v1/{}/pods",
    "/api/v1/{}/services",
    "/apis/policy/v1/{}/poddisruptionbudgets",
    "/apis/networking.k8s.io/v1/{}/networkpolicies",
)


class Leader:
    """The operator that acts. Another one in its place would spoil the figures: then LookupError is raised."""

    def __init__(self, turnout: Installed) -> None:
        self._address = turnout.leader()["status"]["podIP"]
        self._pid = pid_at(turnout.cluster, self._address, "turnout-operator")

    def used(self) -> Usage:
        """Return what its process uses."""
        found = usage(self._pid)
        if found is None:
            raise LookupError(
                "the operator that acted has ended: is the machine too busy for it to keep its lease?"
            )
        return found

    def passes(self) -> float:
        """Return how often it has looked at an LLMDeployment."""
        return self._sum('turnout_operator_reconcile_seconds_count{kind="LLMDeployment"')

    def decisions(self) -> float:
        """Return how often it has decided about the scaling of one."""
        return self._sum("turnout_operator_scaling_decisions_total{")

    def requests(self) -> float:
        """Return how many requests it has made to the API server."""
        return self._sum("turnout_operator_api_requests_total{")

    def _sum(self, metric: str) -> float:
        with urllib.request.urlopen(f"http://{self._address}:9091/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(metric))


def many(figures: Figures, turnout: Installed) -> None:
    """Apply, leave alone, touch and delete `COUNT` deployments."""
    turnout.cluster.kubectl("create", "namespace", NAMESPACE)
    leader = Leader(turnout)
    requests = leader.requests()
    before, started = leader.used(), time.monotonic()
    figures.add("many: memory (RSS) before", "MiB", before.rss_mib)
    turnout.cluster.kubectl(
        *("apply", "--server-side", "--namespace", NAMESPACE, "--filename", "-"),
        stdin=yaml.dump_all(_manifests(), Dumper=yaml.CSafeDumper),
        timeout=DEADLINE_SECONDS,
    )
    applied = time.monotonic()
    figures.add(f"many: kubectl apply of {COUNT} deployments", "s", applied - started)
    pools = WHAT_IS_MADE[1]
    _until(f"{POOLS} pools stand", lambda: _count(turnout, pools) == POOLS)
    figures.add(f"many: {POOLS} pools stand after the apply", "s", time.monotonic() - applied)
    _settle(leader)
    figures.add("many: processor until all is settled", "s", leader.used().cpu_seconds - before.cpu_seconds)
    figures.add(
        "many: requests to the API server per new deployment", "", (leader.requests() - requests) / COUNT
    )
    share = _idle(figures, leader)
    _touch(figures, turnout, leader, share)
    _reading(figures, turnout)
    started = time.monotonic()
    turnout.cluster.kubectl(
        *("delete", "llmdeployments", "--all", "--namespace", NAMESPACE, "--wait=false"),
        timeout=DEADLINE_SECONDS,
    )
    _until("all is gone", lambda: not any(_count(turnout, path) for path in WHAT_IS_MADE))
    figures.add(
        f"many: from the begin of the deletion until all of {COUNT} is gone", "s", time.monotonic() - started
    )


def _idle(figures: Figures, leader: Leader) -> float:
    """Measure what they cost while nothing happens; return the share of a core."""
    passes, decisions = leader.passes(), leader.decisions()
    before, started = leader.used(), time.monotonic()
    time.sleep(IDLE_SECONDS)  # the quantity that is measured is a rate over just this time
    after, seconds = leader.used(), time.monotonic() - started
    share = (after.cpu_seconds - before.cpu_seconds) / seconds
    figures.add("many: processor, idle, operator that acts", "% of a core", share * 100)
    figures.add("many: memory (RSS), operator that acts", "MiB", after.rss_mib)
    figures.add("many: passes, idle", "per minute", (leader.passes() - passes) / seconds * 60)
    figures.add("many: decisions, idle", "per minute", (leader.decisions() - decisions) / seconds * 60)
    return share


def _touch(figures: Figures, turnout: Installed, leader: Leader, share: float) -> None:
    """Change every deployment a little; measure what the event and the pass cost that follow."""
    passes = leader.passes()
    before, started = leader.used(), time.monotonic()
    turnout.cluster.kubectl(
        *("annotate", "llmdeployments", "--all", "--namespace", NAMESPACE, "touched=yes"),
        timeout=DEADLINE_SECONDS,
    )
    _settle(leader)
    spent = leader.used().cpu_seconds - before.cpu_seconds - share * (time.monotonic() - started)
    done = leader.passes() - passes
    if done < COUNT:
        raise LookupError(f"{COUNT} deployments were changed, and only {done:.0f} passes made")
    figures.add("many: passes per change", "", done / COUNT)
    figures.add("many: processor per change of a deployment", "ms", spent / COUNT * 1000)


def _reading(figures: Figures, turnout: Installed) -> None:
    """Measure what it costs to read the two workers of a deployment that serves, as it is done before each decision."""
    found = turnout.items("pods", "--selector", "app.kubernetes.io/component=worker", namespace=NAMESPACE)
    by_owner: dict[str, list[Target]] = {}
    for pod in found:
        if is_ready(pod):
            owner = by_owner.setdefault(pod["metadata"]["labels"][LABEL_DEPLOYMENT], [])
            owner.append(Target(pod["metadata"]["uid"], pod["status"]["podIP"]))
    name, workers = max(by_owner.items(), key=lambda item: len(item[1]))
    key = Key(NAMESPACE, name)

    async def read() -> float:
        tasks = Supervisor(lambda _: None, logging.getLogger(__name__))
        async with Collector(tasks) as collector:
            await collector.read(key, workers, 1)
            begun = time.process_time()
            for _ in range(READINGS):
                await collector.read(key, workers, 1)
            spent = time.process_time() - begun
            if any(collector.load(key, worker.uid) is None for worker in workers):
                raise LookupError(f"a worker of {key} does not answer")
        await tasks.stop()
        return spent

    spent = asyncio.run(read())
    figures.add(f"many: processor per reading of {len(workers)} workers", "ms", spent / READINGS * 1000)


def _settle(leader: Leader) -> None:
    """Return once the operator has hardly done anything for a while. Its metrics are not asked for: they cost more."""
    seen: list[float] = []

    def still() -> bool:
        seen.append(leader.used().cpu_seconds)
        quiet = round(QUIET_SECONDS)
        return len(seen) > quiet and seen[-1] - seen[-1 - quiet] < QUIET_SHARE * quiet

    until("nothing is done any more", still, DEADLINE_SECONDS, pause=1.0)


def _until(what: str, condition: Callable[[], Any]) -> None:
    until(what, condition, DEADLINE_SECONDS, pause=0.5)


def _manifests() -> list[dict[str, Any]]:
    example = yaml.safe_load(EXAMPLE.read_text())
    spec = example["spec"]
    model = {key: value for key, value in spec["model"].items() if key != "servedNames"}
    engine = {"type": "simulated", "simulated": {"startupTime": "0s"}}
    return [
        {
            **example,
            "metadata": {"name": f"many-{number:03}"},
            "spec": {**spec, "model": model, "engine": engine},
        }
        for number in range(COUNT)
    ]


def _count(turnout: Installed, path: str) -> int:
    """Return how many objects there are at *path* in the namespace, without reading them all."""
    where = path.format(f"namespaces/{NAMESPACE}")
    status, body = apiclient.get(turnout.cluster.config, turnout.cluster.files, f"{where}?limit=1")
    if status != 200:
        raise OSError(f"{where}: {status}: {body[:200]!r}")
    page = json.loads(body)
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))
