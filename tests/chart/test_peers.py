"""Two routers of a real installation: they find each other, and know the one that comes after a kill again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from support.chart_rendering import NAMESPACE
from support.installation import Installation, llmdeployment, wait_until

if TYPE_CHECKING:
    from turnout_devcluster.cluster import Cluster

pytestmark = pytest.mark.cluster


def peers(pod: dict[str, object], token: str) -> tuple[int, int]:
    """Return how many routers *pod* sends to, and how many it receives from."""
    url = f"http://{pod['status']['podIP']}:9090/admin/peers"  # type: ignore[index]
    page = httpx.get(url, timeout=5, headers={"authorization": f"Bearer {token}"}).raise_for_status().json()
    return sum(one["state"] == "connected" for one in page["outgoing"]), len(page["incoming"])


def know_each_other(turnout: Installation) -> list[dict[str, object]]:
    """Wait until both routers tell and hear one other; return their pods."""
    token = turnout.secret("turnout-router-admin", "token")

    def settled() -> list[dict[str, object]]:
        pods = turnout.router_pods()
        try:
            return pods if len(pods) == 2 and {peers(pod, token) for pod in pods} == {(1, 1)} else []
        except httpx.TransportError:
            return []

    found: list[dict[str, object]] = wait_until("both routers know each other", settled, 60)
    return found


def assert_explained(turnout: Installation, served: list[str]) -> None:
    """`turnout explain` needs nothing but the kubeconfig: it reads the token of the chart's Secret by itself."""
    path = f"{turnout.cluster.binary('kubectl').parent}:{os.environ['PATH']}"
    explained = subprocess.run(
        [Path(sys.executable).parent / "turnout", "explain", "requests", "--namespace", NAMESPACE],
        env=os.environ | {"KUBECONFIG": str(turnout.cluster.kubeconfig), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (explained.returncode, explained.stderr) == (0, "")
    assert all(one in explained.stdout for one in served)


def test_two_routers_know_each_others_requests(bare_cluster: Cluster) -> None:
    """With the chart's own secret: what one sends is known to the other, which follows; killed, it is known again.

    An upgrade keeps that secret and the admin token, without which only health and metrics can be read.
    """
    turnout = Installation(bare_cluster)
    turnout.install("operator.replicas=1")
    made = [
        turnout.secret(f"turnout-router-{name}", key)
        for name, key in (("peers", "secret"), ("admin", "token"))
    ]
    turnout.install("operator.replicas=1", "router.podAnnotations.upgraded=again")
    assert made == [
        turnout.secret(f"turnout-router-{name}", key)
        for name, key in (("peers", "secret"), ("admin", "token"))
    ]
    turnout.apply(llmdeployment("two", prefill=None, decode=(2, 2)), namespace="default")
    turnout.wait_condition("two", "default", "Ready")
    one, other = know_each_other(turnout)
    went, served = [], []
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
        served.append(answer.headers["x-request-id"])
    assert len(set(went)) == 1, "the prefix is known to every router"
    for router in (one, other):
        url = f"http://{router['status']['podIP']}:9090/admin/fleet"  # type: ignore[index]
        assert httpx.get(url, timeout=5).status_code == 401
        page = httpx.get(f"http://{router['status']['podIP']}:9090/metrics", timeout=5).text  # type: ignore[index]
        (heard,) = re.findall(r'peer_messages_total\{direction="received"\} ([0-9.]+)', page)
        assert float(heard) >= 6, "two requests: sent, expected, finished"
    assert_explained(turnout, served)
    os.kill(turnout.pid(other), signal.SIGKILL)
    know_each_other(turnout)
    turnout.cluster.helm("uninstall", "turnout", "--namespace", NAMESPACE, "--wait")
