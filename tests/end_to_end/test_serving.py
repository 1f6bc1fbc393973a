"""A user applies a manifest and talks to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest
import yaml

from support.installation import REPOSITORY, is_true, llmdeployment, wait_until

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster


def test_the_example_serves_chat_through_prefill_and_decode(turnout: Installation, space: str) -> None:
    """The manifest of the README's example is applied, turns Ready, and answers OpenAI's own client, streaming and not."""
    manifest = yaml.safe_load((REPOSITORY / "examples" / "llama-8b.yaml").read_text())
    turnout.apply(manifest, namespace=space)
    turnout.wait_condition("llama-8b", space, "Ready")
    with openai.OpenAI(base_url=turnout.router_url(), api_key="none", max_retries=0, timeout=30) as client:
        wait_until(
            "the router lists it", lambda: "llama-3.1-8b" in {model.id for model in client.models.list()}, 15
        )
        question = [{"role": "user", "content": "Why do railways need turnouts? " * 60}]
        answer = client.chat.completions.with_raw_response.create(
            model="llama-3.1-8b", messages=question, max_tokens=40
        )
        whole = answer.parse()
        pieces = list(
            client.chat.completions.create(
                model="llama-3.1-8b",
                messages=question,
                max_tokens=40,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert answer.headers["x-turnout-backend"]
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.usage is not None
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens <= 40
    prefill = turnout.ready_pods("turnout.dev/role=prefill", space)
    assert len(prefill) == 1, "the example starts with one prefill worker"


def test_the_table_shows_health_at_a_glance(turnout: Installation, space: str) -> None:
    """``kubectl get llmd`` shows readiness and both pools without -o wide."""
    turnout.apply(llmdeployment("glance"), namespace=space)
    turnout.wait_condition("glance", space, "Ready")
    header, row = turnout.cluster.kubectl("get", "llmd", "--namespace", space).splitlines()
    assert header.split()[:2] == ["NAME", "READY"]
    assert row.split()[:2] == ["glance", "True"]


def test_an_aggregated_deployment_serves(turnout: Installation, space: str) -> None:
    """Without ``prefill`` one pool does both halves."""
    turnout.apply(llmdeployment("whole", prefill=None), namespace=space)
    turnout.wait_condition("whole", space, "Ready")
    with openai.OpenAI(base_url=turnout.router_url(), api_key="none", max_retries=5, timeout=30) as client:
        wait_until("the router lists it", lambda: "whole" in {model.id for model in client.models.list()}, 15)
        answer = client.completions.create(model="whole", prompt="Once upon a time", max_tokens=8)
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 8


def test_a_route_shares_requests_out_between_deployments(turnout: Installation, space: str) -> None:
    """An LLMRoute gives clients one name for two deployments, by weight."""
    turnout.apply(
        llmdeployment("old", prefill=None),
        llmdeployment("new", prefill=None),
        {
            "apiVersion": "turnout.dev/v1alpha1",
            "kind": "LLMRoute",
            "metadata": {"name": "chat"},
            "spec": {
                "names": ["chat"],
                "targets": [{"deployment": "old", "weight": 1}, {"deployment": "new", "weight": 1}],
            },
        },
        namespace=space,
    )
    for name in ("old", "new"):
        turnout.wait_condition(name, space, "Ready")
    wait_until(
        "the route is Ready", lambda: is_true(turnout.get("llmroute", "chat", namespace=space), "Ready"), 15
    )
    with openai.OpenAI(base_url=turnout.router_url(), api_key="none", max_retries=0, timeout=30) as client:
        wait_until("the router lists it", lambda: "chat" in {model.id for model in client.models.list()}, 15)
        backends = {
            client.completions.with_raw_response.create(model="chat", prompt="Hello", max_tokens=1).headers[
                "x-turnout-backend"
            ]
            for _ in range(30)  # the chance that a fair coin never turns: 2e-9
        }
    assert len(backends) == 2
