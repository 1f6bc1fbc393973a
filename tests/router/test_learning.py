"""What the router learns of its workers' models, and what its clients see of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from support.router_mock_backend import mock_worker
from support.router_running import DEPLOYMENT, MODEL, Running, config, eventually, running_router
from support.worker_process import running_worker
from turnout.routing import Backend, DeploymentRoute, build_fleet
from turnout.routing.facts import ModelCard
from turnout_router.fleet import learning as module
from turnout_router.fleet.learning import Facts, cards_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)


def listed(length: int | None = 4096, *adapters: str, **more: Any) -> bytes:
    """Return a worker's list in vLLM's form."""
    card = {
        "id": MODEL,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "vllm",
        "root": "/models/tiny",
    }
    cards = [card | {"parent": None, "max_model_len": length, "permission": [{"id": "modelperm-1"}]} | more]
    cards += [card | {"id": a, "root": f"/adapters/{a}", "parent": MODEL} for a in adapters]
    return json.dumps({"object": "list", "data": cards}).encode()


def length_known(r: Running) -> int | None:
    facts = r.router._backends.facts.of(DEPLOYMENT)
    return None if facts is None else facts.max_model_len


async def model(r: Running, name: str = MODEL) -> dict[str, Any]:
    """Return one model, and check that the list says the same of it."""
    one: dict[str, Any] = (await r.client.get(f"/v1/models/{name}")).json()
    data = (await r.client.get("/v1/models")).json()["data"]
    assert one in data
    return one


async def test_clients_see_what_workers_say(tmp_path: Path) -> None:
    """Context length, root and time of creation, of adapters their parent, too; OpenAI's library reads all of it."""
    async with mock_worker() as worker:
        content = config([("aggregated", worker.url)], adapters=["sql", "fr"])
        async with running_router(tmp_path, content) as r:
            unknown = {"root": None, "parent": None, "max_model_len": None, "created": 0}
            wanted = {"id": MODEL, "object": "model", "owned_by": "turnout"}
            assert await model(r) == wanted | unknown
            worker.models = listed(4096, "sql")
            await eventually(lambda: length_known(r) == 4096)
            known = {"max_model_len": 4096, "created": 1_700_000_000}
            assert await model(r) == wanted | known | {"root": "/models/tiny", "parent": None}
            sql = wanted | known | {"id": "sql", "root": "/adapters/sql", "parent": MODEL}
            assert await model(r, "sql") == sql
            assert await model(r, "fr") == wanted | known | {"id": "fr", "root": None, "parent": None}
            async with AsyncOpenAI(base_url=r.base_url, api_key="any", max_retries=0) as client:
                found = await client.models.retrieve(MODEL)
                assert found.model_dump()["max_model_len"] == 4096


async def test_a_real_workers_list_is_read(tmp_path: Path) -> None:
    """The simulated worker, which has vLLM's form."""
    with running_worker(time_scale=20, max_length=8192) as worker:
        async with running_router(tmp_path, config([("aggregated", worker.url)])) as r:
            await eventually(lambda: length_known(r) == 8192)


async def test_the_least_of_all_workers_counts_and_follows_them(tmp_path: Path) -> None:
    """Two revisions in a rollout; a worker that starts anew with other arguments is asked again."""
    async with mock_worker(models=listed(4096)) as old, mock_worker(models=listed(2048)) as new:
        content = config([("aggregated", old.url, "a"), ("aggregated", new.url, "b")])
        async with running_router(tmp_path, content) as r:
            await eventually(lambda: length_known(r) == 2048)
            new.models = listed(8192)
            await eventually(lambda: length_known(r) == 4096)
            new.models, new.behavior = b"", "reset"
            asked = new.models_asked
            await eventually(lambda: new.models_asked > asked + 1)
            assert length_known(r) == 4096
            old.models = listed(1024)
            await eventually(lambda: length_known(r) == 1024)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"data": [' + b"{}," * 50_000 + b"{}]}",
        b'{"data": [' + b'{"id": "x"},' * 2_000 + b'{"id": "x"}]}',
        b'{"data": [{"id": "' + b"x" * 2_000 + b'"}]}',
        b'{"data": [{"id": 5}]}',
        listed(0),
        listed(-1),
        listed(1 << 40),
        listed("4096"),  # type: ignore[arg-type]
        listed(created=-1),
        listed(root=["/models"]),
        b'{"data": {"id": "tiny-1b"}}',
        b"{}" + b" " * 300_000,
        b"null",
        b"\xff\xfe",
    ],
    ids=[
        "nested",
        "objects without names",
        "too many",
        "a long name",
        "a name that is a number",
        "no context",
        "a negative context",
        "a huge context",
        "a context as text",
        "a negative time",
        "a list for a path",
        "an object for the list",
        "too large",
        "null",
        "no UTF-8",
    ],
)
async def test_hostile_answers_are_ignored(tmp_path: Path, body: bytes) -> None:
    """Nested, endless, of wrong types or sizes: nothing is known by them, and requests are served."""
    assert cards_in(body) == ()
    async with (
        mock_worker(models=body) as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        await eventually(lambda: worker.models_asked > 1)
        assert r.router._backends.facts.of(DEPLOYMENT) is None
        assert (await model(r))["max_model_len"] is None
        assert (await r.chat()).status_code == 200


async def test_one_worker_that_errs_changes_nothing_for_the_others(tmp_path: Path) -> None:
    """A context of one token, reported by one of three: clients see what the others report."""
    async with (
        mock_worker(models=listed(4096)) as one,
        mock_worker(models=listed(4096)) as other,
        mock_worker(models=listed(1, root="/elsewhere", created=1)) as wrong,
    ):
        content = config([("aggregated", w.url) for w in (one, other, wrong)])
        async with running_router(tmp_path, content) as r:
            await eventually(lambda: min(w.models_asked for w in (one, other, wrong)) > 1)
            found = await model(r)
            assert (found["max_model_len"], found["root"]) == (4096, "/models/tiny")


async def test_a_worker_that_does_not_answer_holds_up_no_other(tmp_path: Path) -> None:
    """More of them than are asked at a time: the one that answers is known all the same."""
    async with mock_worker(models=listed(4096)) as good:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "ANSWER_SECONDS", 0.1)
            dead = [("aggregated", f"http://127.0.0.1:{port}") for port in range(1, 12)]
            async with running_router(tmp_path, config([*dead, ("aggregated", good.url)])) as r:
                await eventually(lambda: length_known(r) == 4096)


def test_what_is_known_follows_the_fleet() -> None:
    """A worker that left or has another revision says nothing any more; what is left over says no less."""
    route = DeploymentRoute("default/tiny", ("tiny",))

    def worker(id_: str, revision: str) -> Backend:
        return Backend(id_, "default/tiny", "127.0.0.1", 1, "aggregated", revision, ("tiny",))

    one, two = worker("one", "a"), worker("two", "a")
    facts = Facts()
    facts.retain(build_fleet([route], (), (), [one, two]))
    facts.learn(one, (ModelCard("tiny", max_model_len=4096),))
    facts.learn(two, (ModelCard("tiny", max_model_len=2048),))
    facts.learn(two, ())
    known = facts.of("default/tiny")
    assert known is not None
    assert known.max_model_len == 2048
    facts.retain(build_fleet([route], (), (), [one, worker("two", "b")]))
    known = facts.of("default/tiny")
    assert known is not None
    assert known.max_model_len == 4096
    facts.retain(build_fleet([route], (), (), []))
    assert facts.of("default/tiny") is None
    assert not facts._reports
