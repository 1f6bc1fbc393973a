"""LoRA adapters of an LLMDeployment: called by their names, served by the workers that have them loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from support.installation import llmdeployment, wait_until

if TYPE_CHECKING:
    from support.installation import Installation

pytestmark = pytest.mark.cluster


def test_an_adapter_is_a_name_that_stays_where_it_is_loaded(turnout: Installation, space: str) -> None:
    """Applied, listed, answered under its own name, by one of two workers; the model itself is answered by both."""
    model, sql, law = (f"{space}-{name}" for name in ("base", "sql", "law"))
    adapters = [{"name": name, "source": "hf://acme/lora"} for name in (sql, law)]
    manifest = llmdeployment("tuned", served=model, prefill=None, decode=(2, 2), lora={"adapters": adapters})
    turnout.apply(manifest, namespace=space)
    turnout.wait_condition("tuned", space, "Ready")
    wait_until(
        "both workers",
        lambda: len(turnout.ready_pods("turnout.dev/role=aggregated", space)) == 2,
        60,
    )
    with openai.OpenAI(base_url=turnout.router_url(), api_key="none", max_retries=0, timeout=30) as client:
        wait_until(
            "the router lists them",
            lambda: {model, sql, law} <= {one.id for one in client.models.list()},
            15,
        )

        def ask(name: str, number: int) -> str:
            answer = client.completions.with_raw_response.create(model=name, prompt=f"{number}", max_tokens=2)
            assert answer.parse().model == name
            return answer.headers["x-turnout-backend"]

        wait_until("two workers in the router", lambda: len({ask(model, n) for n in range(6)}) == 2, 30)
        homes = {name: {ask(name, number) for number in range(6)} for name in (sql, law)}
        assert [len(workers) for workers in homes.values()] == [1, 1]
        with pytest.raises(openai.NotFoundError):
            ask(f"{space}-other", 0)
