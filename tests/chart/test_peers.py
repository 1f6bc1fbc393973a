"""Two routers of a real installation: they find each other, and know again whoever comes after a kill."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from support.chart_rendering import NAMESPACE
from support.installation import Installation, llmdeployment, wait_until

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster

SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {name: peers}\nstringData: {secret: only routers know}\n"


def peers(pod: dict[str, object]) -> tuple[int, int]:
    """Return how many routers *pod* tells, and how many it hears."""
    page = httpx.get(f"http://{pod['status']['podIP']}:9090/admin/peers", timeout=5).json()  # type: ignore[index]
    return sum(told["state"] == "told" for told in page["told"]), len(page["heard"])


def know_each_other(turnout: Installation) -> list[dict[str, object]]:
    """Wait until both routers tell and hear one other; return their pods."""

    def settled() -> list[dict[str, object]]:
        pods = turnout.router_pods()
        try:
            return pods if len(pods) == 2 and {peers(pod) for pod in pods} == {(1, 1)} else []
        except httpx.TransportError:
            return []

    found: list[dict[str, object]] = wait_until("both routers know each other", settled, 60)
    return found


def test_two_routers_know_each_others_requests(bare_cluster: Cluster) -> None:
    """With a shared secret: what one sends is heard by the other, which follows; killed, it is known again."""
    turnout = Installation(bare_cluster)
    if not turnout.cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"):
        turnout.cluster.kubectl("create", "namespace", NAMESPACE)
    turnout.cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=SECRET)
    turnout.install("router.peers.secretName=peers", "operator.replicas=1")
    turnout.apply(llmdeployment("two", prefill=None, decode=(2, 2)), namespace="default")
    turnout.wait_condition("two", "default", "Ready")
    one, other = know_each_other(turnout)
    went = []
    for number, router in enumerate((one, other, one, other)):
        url = f"http://{router['status']['podIP']}:8080/v1"  # type: ignore[index]
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
            wait_until("it lists the model", lambda: "two" in {m.id for m in client.models.list()}, 20)
            answer = client.chat.completions.with_raw_response.create(
                model="two",
                messages=[{"role": "user", "content": f"turnouts {'and rails ' * 2000}{'!' * number}"}],
                max_tokens=4,
            )
        went.append(answer.headers["x-turnout-backend"])
    assert len(set(went)) == 1, "the prefix is known to whoever is asked"
    for router in (one, other):
        page = httpx.get(f"http://{router['status']['podIP']}:9090/metrics", timeout=5).text  # type: ignore[index]
        (heard,) = re.findall(r'peer_messages_total\{direction="received"\} ([0-9.]+)', page)
        assert float(heard) >= 6, "two requests: sent, expected, finished"
    os.kill(turnout.pid(other), signal.SIGKILL)
    know_each_other(turnout)
    turnout.cluster.helm("uninstall", "turnout", "--namespace", NAMESPACE, "--wait")
