"""`/v1/models` for clients of either API, read with their own libraries."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from openai import AsyncOpenAI

from support.router_running import Running, config, running_router

if TYPE_CHECKING:
    from pathlib import Path

MANY = [f"m{number:02}" for number in range(45)]


def fleet(*names: str) -> dict[str, Any]:
    """Return a configuration with a deployment for each of *names*, none of which has a worker."""
    one = config([])["deployments"][0]
    return {
        "deployments": [
            one | {"name": f"default/d{number}", "servedNames": [name]} for number, name in enumerate(names)
        ]
    }


def anthropic_client(r: Running, key: str = "any") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=r.base_url.removesuffix("/v1"), api_key=key, max_retries=0, timeout=20
    )


async def test_anthropics_client_lists_models(tmp_path: Path) -> None:
    """Page by page, forwards and backwards, each model as its library has it."""
    async with running_router(tmp_path, fleet(*MANY)) as r, anthropic_client(r) as client:
        assert [model.id async for model in client.models.list()] == MANY
        page = await client.models.list(limit=10)
        assert (page.first_id, page.last_id, page.has_more) == ("m00", "m09", True)
        page = await client.models.list(limit=10, before_id="m25")
        assert ([model.id for model in page.data], page.has_more) == (MANY[15:25], True)
        page = await client.models.list(limit=1000, after_id="m43")
        assert ([model.id for model in page.data], page.has_more) == (["m44"], False)
        model = await client.models.retrieve("m07")
        assert (model.type, model.id, model.display_name, model.created_at.year) == (
            "model",
            "m07",
            "m07",
            1970,
        )


async def test_anthropics_client_reads_what_is_wrong(tmp_path: Path) -> None:
    """An unknown model, a page that is none and a wrong key are errors of its own kinds, with the request's id."""
    async with running_router(tmp_path, fleet("m"), auth="required") as r, anthropic_client(r) as client:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await client.models.list()
        assert refused.value.request_id
    (tmp_path / "open").mkdir()
    async with running_router(tmp_path / "open", fleet("m")) as r, anthropic_client(r) as client:
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.models.retrieve("other")
        assert missing.value.type == "not_found_error"
        for page in ({"limit": 0}, {"limit": 1001}, {"after_id": "other"}, {"before_id": "other"}):
            with pytest.raises(anthropic.BadRequestError):
                await client.models.list(**page)


async def test_a_key_lists_what_it_may_call(tmp_path: Path) -> None:
    """Anthropic's clients send it in x-api-key, OpenAI's as a bearer token; both see the same names."""
    content = fleet("one", "two")
    content["budgets"] = [
        {
            "name": "default/team",
            "models": ["two"],
            "keys": [{"name": "k", "sha256": hashlib.sha256(b"sk-1").hexdigest()}],
        }
    ]
    async with (
        running_router(tmp_path, content, auth="required") as r,
        anthropic_client(r, "sk-1") as messages,
        AsyncOpenAI(base_url=r.base_url, api_key="sk-1", max_retries=0) as openai,
    ):
        assert [model.id async for model in messages.models.list()] == ["two"]
        assert [model.id async for model in openai.models.list()] == ["two"]
        with pytest.raises(anthropic.NotFoundError):
            await messages.models.retrieve("one")
