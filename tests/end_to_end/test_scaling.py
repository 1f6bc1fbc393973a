"""Pools grow under load and shrink without it, and no stream is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.clients import asking, until
from support.installation import llmdeployment

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster


async def test_load_adds_workers_and_quiet_takes_them_away_without_cutting_a_stream(
    turnout: Installation, space: str
) -> None:
    """Scale-up and scale-in, each with a sentence in the status and an Event, under clients that never stop."""
    turnout.apply(
        llmdeployment(
            "grow",
            prefill=(1, 3),
            decode=(1, 3),
            engine={"type": "simulated", "simulated": {"timeScale": 4}},
            slo={"timeToFirstToken": "1s", "interTokenLatency": "30ms", "goodputPercent": 95},
            scaling={"scaleDown": {"stabilization": "60s"}},
        ),
        namespace=space,
    )
    await until("it is ready", lambda: turnout.wait_condition("grow", space, "Ready"), 90)
    url = turnout.router_url()

    def asked_for() -> tuple[int, int]:
        status = turnout.deployment("grow", space)["status"]
        return status["prefill"]["desired"], status["decode"]["desired"]

    async with asking(url, "grow", clients=1, tokens=100) as trickle:
        async with asking(url, "grow", clients=24, tokens=100, prompt_words=9000) as flood:
            await until("a pool has grown", lambda: sum(asked_for()) > 2, 90)
        grown = await until(
            "it is reported", lambda: turnout.deployment("grow", space)["status"].get("lastScaling"), 10
        )
        assert "->" in grown["reason"], grown
        await until("both pools are small again", lambda: asked_for() == (1, 1), 120)
        await until(
            "the pods are gone",
            lambda: len(turnout.get("pods", namespace=space)["items"]) == 2,
            150,
        )
    assert flood.failures == []
    assert trickle.failures == []
    assert flood.succeeded > 0
    assert trickle.succeeded > 0
    events = turnout.get("events", "--field-selector=involvedObject.kind=LLMDeployment", namespace=space)[
        "items"
    ]
    reasons = {event["reason"] for event in events}
    assert {"ScaledUp", "ScaledDown"} <= reasons
