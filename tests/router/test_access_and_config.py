"""Keys, the fleet's file and its reload, routes by weight."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.testing import CliRunner

from support.router_mock_backend import mock_worker
from support.router_running import (
    DEPLOYMENT,
    MODEL,
    chat,
    config,
    eventually,
    eventually_async,
    running_router,
)
from turnout_cli.key import app
from turnout_router.discovery.file import read_config
from turnout_router.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-test"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def budgets(*models: str) -> list[dict[str, Any]]:
    return [{"name": "default/team", "keys": [{"name": "alice", "sha256": DIGEST}], "models": list(models)}]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("auth", "headers", "status"),
    [
        ("open", {}, 200),
        ("open", bearer(KEY), 200),
        ("open", bearer("wrong"), 401),
        ("open", {"authorization": f"Basic {KEY}"}, 401),
        ("required", {}, 401),
        ("required", bearer("wrong"), 401),
        ("required", {"authorization": "Bearer"}, 401),
        ("required", bearer(KEY), 200),
        ("required", {"authorization": f"bearer  {KEY}"}, 200),
    ],
)
async def test_keys(tmp_path: Path, auth: str, headers: dict[str, str], status: int) -> None:
    """Open: optional, but never wrong. Required: 401 without a key that is known."""
    async with mock_worker() as worker:
        fleet = config([("aggregated", worker.url)]) | {"budgets": budgets()}
        async with running_router(tmp_path, fleet, auth=auth) as r:
            answer = await r.client.post("/v1/chat/completions", json=chat(), headers=headers)
            models = await r.client.get("/v1/models", headers=headers)
    assert answer.status_code == models.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert not worker.received


async def test_where_no_key_is_known_any_key_will_do(tmp_path: Path) -> None:
    """Clients that cannot do without a key can send any, as long as nobody has granted one."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        answer = await r.client.post("/v1/chat/completions", json=chat(), headers=bearer("none"))
    assert answer.status_code == 200


async def test_a_key_sees_and_calls_only_what_it_was_granted(tmp_path: Path) -> None:
    """Other names do not exist for it: 404, not listed."""
    async with mock_worker() as worker:
        fleet = config([("aggregated", worker.url)]) | {
            "routes": [{"names": ["chat"], "targets": [{"deployment": DEPLOYMENT}]}],
            "budgets": budgets("chat"),
        }
        async with running_router(tmp_path, fleet, auth="required") as r:
            r.client.headers.update(bearer(KEY))
            assert (await r.chat(model="chat")).status_code == 200
            assert (await r.chat()).status_code == 404
            listed = (await r.client.get("/v1/models")).json()["data"]
            assert (await r.client.get(f"/v1/models/{MODEL}")).status_code == 404
    assert [model["id"] for model in listed] == ["chat"]
    assert worker.received[0].body["model"] == MODEL


def test_the_key_command_prints_a_key_and_its_entry() -> None:
    """The digest in the entry is the key's, and every call makes another key."""
    outputs = [CliRunner().invoke(app, ["create", "--name", "alice"]) for _ in range(2)]
    keys = []
    for output in outputs:
        assert output.exit_code == 0
        key = next(line for line in output.stdout.splitlines() if line.startswith("sk-"))
        entry = yaml.safe_load(output.stdout.split("TokenBudget:\n")[1])
        assert entry == [{"name": "alice", "sha256": hashlib.sha256(key.encode()).hexdigest()}]
        keys.append(key)
    assert keys[0] != keys[1]
    assert CliRunner().invoke(app, ["create", "--name", ""]).exit_code == 2


async def test_routes_share_out_by_weight(tmp_path: Path) -> None:
    """All of the weight on one target: all of the requests; the name of the route never reaches a worker."""
    async with mock_worker() as a, mock_worker() as b:
        fleet = {
            "deployments": [
                {
                    "name": f"default/{name}",
                    "servedNames": [name],
                    "backends": [{"url": worker.url, "role": "aggregated"}],
                }
                for name, worker in (("one", a), ("two", b))
            ],
            "routes": [
                {
                    "names": ["chat"],
                    "targets": [
                        {"deployment": "default/one", "weight": 0},
                        {"deployment": "default/two", "weight": 5},
                    ],
                }
            ],
        }
        async with running_router(tmp_path, fleet) as r:
            for _ in range(5):
                assert (await r.chat(model="chat")).status_code == 200
    assert not a.received
    assert {request.body["model"] for request in b.received} == {"two"}


async def test_a_changed_file_is_taken_over_and_a_broken_one_is_not(tmp_path: Path) -> None:
    """The new fleet serves without a restart; an invalid file leaves the old one in use and says so."""
    async with (
        mock_worker() as a,
        mock_worker() as b,
        running_router(tmp_path, config([("aggregated", a.url)])) as r,
    ):
        file = tmp_path / "router.yaml"
        file.write_text(yaml.safe_dump(config([("aggregated", b.url)])))

        async def moved() -> bool:
            await r.chat()
            return bool(b.received)

        await eventually_async(moved)
        file.write_text("deployments: [{name: nonsense}]")

        async def stale() -> bool:
            return await r.metric("turnout_router_fleet_stale") == 1

        await eventually_async(stale)
        assert (await r.chat()).status_code == 200
        assert (await r.admin.get("/readyz")).status_code == 200
        assert await r.metric("turnout_router_fleet_rejected_total") == 1
        file.write_text(yaml.safe_dump(config([("aggregated", a.url)])))
        r.router.reload()
        seen = len(a.received)

        async def back() -> bool:
            await r.chat()
            return len(a.received) > seen

        await eventually_async(back)
        assert not await stale()


BAD_FILES = {
    "no YAML": ("deployments: [", "is no YAML"),
    "unknown field": ("deployment: []", "deployment: Extra inputs"),
    "no namespace": ("deployments: [{name: x, servedNames: [x]}]", "deployments[0].name"),
    "bad role": (
        "deployments: [{name: a/b, servedNames: [x], backends: [{url: 'http://h:1', role: both}]}]",
        "backends[0].role",
    ),
    "no port": (
        "deployments: [{name: a/b, servedNames: [x], backends: [{url: 'http://h', role: decode}]}]",
        "write http://HOST:PORT",
    ),
    "twice": (
        "deployments: [{name: a/b, servedNames: [x]}, {name: a/b, servedNames: [y]}]",
        "two deployments are called a/b",
    ),
    "conflict": (
        "deployments: [{name: a/b, servedNames: [x]}, {name: a/c, servedNames: [x]}]",
        "both claim the name 'x'",
    ),
    "queueing without work": (
        "deployments: [{name: a/b, servedNames: [x], policy: LeastLoaded, queueing: Router}]",
        "deployments[0]: queueing Router has no effect with the policy LeastLoaded",
    ),
    "lost target": (
        "routes: [{names: [chat], targets: [{deployment: a/b}]}]",
        "leads to a/b, which is none of the deployments",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_explained(tmp_path: Path, case: str) -> None:
    """The message says where, and what to write instead."""
    text, message = BAD_FILES[case]
    file = tmp_path / "router.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("said", "expected"), [("", "Engine"), (", queueing: Router", "Router")])
def test_a_file_says_where_requests_wait(tmp_path: Path, said: str, expected: str) -> None:
    """In the engines, unless it says otherwise."""
    file = tmp_path / "router.yaml"
    file.write_text(f"deployments: [{{name: a/b, servedNames: [x]{said}}}]")
    assert read_config(file).deployments["a/b"].queueing == expected


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


async def test_a_worker_that_leaves_the_fleet_finishes_what_it_has(tmp_path: Path) -> None:
    """Its streams go on; new requests go elsewhere."""
    async with (
        mock_worker(tokens=60, pause_seconds=0.05) as a,
        mock_worker() as b,
        running_router(tmp_path, config([("aggregated", a.url)])) as r,
        r.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer,
    ):
        await eventually(lambda: a.received)
        (tmp_path / "router.yaml").write_text(yaml.safe_dump(config([("aggregated", b.url)])))

        async def moved() -> bool:
            await r.chat()
            return bool(b.received)

        await eventually_async(moved)
        assert "[DONE]" in (await answer.aread()).decode()
