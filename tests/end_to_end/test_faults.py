"""Each part is killed under load: the system converges, and what does not go through the dead part goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import openai
import pytest

from support.clients import Tally, ask, asking, until
from support.installation import SYSTEM_NAMESPACE, llmdeployment
from turnout_devcluster.errors import CommandError

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster


async def serve(turnout: Installation, space: str, name: str, **sizes: Any) -> str:
    """Apply a deployment, wait until the router serves it, return the router's URL."""
    turnout.apply(llmdeployment(name, **sizes), namespace=space)
    await until("it is ready", lambda: turnout.wait_condition(name, space, "Ready"), 90)
    url = turnout.router_url()

    def listed() -> bool:
        with openai.OpenAI(base_url=url, api_key="none", timeout=10) as client:
            return name in {model.id for model in client.models.list()}

    await until("the router lists it", listed, 20)
    return url


def leader(turnout: Installation) -> str:
    """Name of the pod that holds the operator's lease."""
    lease = turnout.get("lease", "turnout-operator", namespace=SYSTEM_NAMESPACE)
    held: str = lease["spec"]["holderIdentity"]
    return held


async def test_the_leading_operator_is_killed(turnout: Installation, space: str) -> None:
    """The other operator takes over and acts; clients notice nothing."""
    url = await serve(turnout, space, "op")
    first = leader(turnout)
    pods = turnout.pods("app.kubernetes.io/component=operator", SYSTEM_NAMESPACE)
    victim = next(pod for pod in pods if pod["metadata"]["name"] in first)
    async with asking(url, "op", clients=2) as tally:
        os.kill(turnout.pid(victim), signal.SIGKILL)
        turnout.cluster.kubectl(
            "delete", "service", "--namespace", space, "--selector=turnout.dev/role=decode"
        )
        await until(
            "the other repairs the drift",
            lambda: turnout.get("services", "--selector=turnout.dev/role=decode", namespace=space)["items"],
            30,
        )
        await until("clients are served", lambda: tally.succeeded > 4, 30)
    assert tally.failures == []


async def test_a_router_is_killed(turnout: Installation, space: str) -> None:
    """Streams through the other router go on; the dead one comes back and serves."""
    await serve(turnout, space, "rt")
    routers = await until(
        "both routers are ready", lambda: len(found := turnout.router_pods()) == 2 and found, 60
    )
    victim, other = routers
    url = f"http://{other['status']['podIP']}:8080/v1"
    async with asking(url, "rt", clients=4, tokens=300) as tally:
        await until("clients are served", lambda: tally.succeeded > 4, 30)
        os.kill(turnout.pid(victim), signal.SIGKILL)
        served = tally.succeeded
        await until("they are served on", lambda: tally.succeeded > served + 8, 30)
    assert tally.failures == []

    def restarted() -> bool:
        pods = turnout.router_pods()
        same = [pod for pod in pods if pod["metadata"]["name"] == victim["metadata"]["name"]]
        return bool(same) and same[0]["status"]["containerStatuses"][0]["restartCount"] > 0

    await until("the killed router is back", restarted, 60)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_is_killed(turnout: Installation, space: str, role: str) -> None:
    """Only streams of the dead worker itself may break; new requests are served by the others at once."""
    url = await serve(turnout, space, f"wk-{role}", prefill=(2, 2), decode=(2, 2))
    pods = turnout.ready_pods(f"turnout.dev/role={role}", space)
    async with asking(url, f"wk-{role}", clients=4) as tally:
        await until("clients are served", lambda: tally.succeeded > 4, 30)
        os.kill(turnout.pid(pods[0]), signal.SIGKILL)
        served = tally.succeeded
        await until("they are served on", lambda: tally.succeeded > served + 8, 30)
    broken = len(tally.failures)
    assert broken <= (4 if role == "decode" else 0), tally.failures
    await until(
        "the worker is back",
        lambda: len(turnout.ready_pods(f"turnout.dev/role={role}", space)) == 2,
        60,
    )


async def test_the_node_agent_is_killed(turnout: Installation, space: str) -> None:
    """Pods go on without it, and it finds them again instead of starting a second set."""
    url = await serve(turnout, space, "na")
    before = {pod["metadata"]["name"]: turnout.pid(pod) for pod in turnout.ready_pods("", space)}
    async with asking(url, "na", clients=2, tokens=300) as tally:
        turnout.cluster.kill("node")
        await until("it runs again", lambda: turnout.cluster.pid("node"), 30)
        served = tally.succeeded
        await until("clients are served", lambda: tally.succeeded > served + 4, 30)
    after = {pod["metadata"]["name"]: turnout.pid(pod) for pod in turnout.ready_pods("", space)}
    assert after == before
    broken = [failure for failure in tally.failures if "Connection" not in failure]
    assert broken == [], "only connections through the agent's own forwarding may break"


async def test_the_api_server_is_killed(turnout: Installation, space: str) -> None:
    """The data path does not need it; afterwards the operator acts again."""
    url = await serve(turnout, space, "api")
    async with asking(url, "api", clients=2, tokens=300) as tally:
        turnout.cluster.kill("kube-apiserver")
        served = tally.succeeded
        await until("clients are served without it", lambda: tally.succeeded > served + 4, 30)

        def answers() -> bool:
            try:
                return turnout.cluster.kubectl("get", "--raw", "/readyz") == "ok"
            except CommandError:
                return False

        await until("it is back", answers, 60)
    assert tally.failures == []
    turnout.cluster.kubectl("delete", "service", "--namespace", space, "--selector=turnout.dev/role=decode")
    await until(
        "the operator repairs the drift",
        lambda: turnout.get("services", "--selector=turnout.dev/role=decode", namespace=space)["items"],
        60,
    )


async def test_clients_that_leave_free_the_workers(turnout: Installation, space: str) -> None:
    """A stream that no client reads any more is cancelled on both halves of the pair."""
    url = await serve(turnout, space, "leave")
    tally = Tally()
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        tasks = [asyncio.create_task(ask(client, "leave", "Count. " * 300, 20000, tally)) for _ in range(6)]

        def running() -> int:
            return sum(_running(pod) for pod in turnout.ready_pods("", space))

        await until("they run", lambda: running() == 6, 30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until("nothing runs", lambda: running() == 0, 10)


def _running(pod: dict[str, Any]) -> int:
    import httpx  # noqa: PLC0415 - only here

    text = httpx.get(f"http://{pod['status']['podIP']}:8000/metrics", timeout=10).text
    return sum(
        int(float(line.rsplit(" ", 1)[1]))
        for line in text.splitlines()
        if line.startswith("vllm:num_requests_running{")
    )
