"""Keys, the fleet's file and its reload, routes by weight."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
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
from turnout_router.errors import ConfigError
from turnout_router.fleet.discovery import file as file_module
from turnout_router.fleet.discovery.file import FileSource, read_config
from turnout_router.fleet.discovery.yamlfile import stamp_of
from turnout_router.options import parse_options
from turnout_runtime.supervision import Supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from turnout.routing import Fleet
    from turnout_router.fleet.discovery.yamlfile import Stamp

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
    """Clients that cannot do without a key can send any, as long as none is granted."""
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


BAD_FILES: dict[str, tuple[str | bytes, str]] = {
    "no YAML": ("deployments: [", "is no YAML"),
    "unknown field": ("deployment: []", "deployment: Extra inputs"),
    "empty": ("", "is empty: write `deployments: []`"),
    "only a comment": ("# the fleet\n---\n", "is empty"),
    "cut after the key": ("deployments:", "deployments: Input should be a valid list"),
    "cut within the key": ("deploym", "Input should be"),
    "without deployments": ("budgets: []", "has no `deployments`"),
    "duplicate key": (
        "deployments: []\nroutes: []\ndeployments: []",
        "says 'deployments' twice in one place, line 3",
    ),
    "no UTF-8": (b"deployments: [] # \xff\xfe", "is no YAML"),
    "a byte that YAML has not": (b"deployments: [] # \0", "is no YAML"),
    "an impossible date": ("deployments: [2001-99-99]", "is no YAML: month must be"),
    "a number without end": (f"deployments: [{'1' * 5000}]", "is no YAML"),
    "a tag that does not fit": ("deployments: !!bool x", "is no YAML"),
    "a tag of Python": ("deployments: !!python/object/apply:os.getcwd []", "is no YAML"),
    "deep": ("deployments: " + "[" * 5000, "is nested too deeply"),
    "within itself": ("deployments: &a [*a]", "contains itself, line 1"),
    "a bomb": (
        "deployments:\n- &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "stands for more than 1000000 values",
    ),
    "too large": ("#" * (8 * 1024 * 1024 + 1), "has more than 8388608 bytes"),
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
        "deployments: []\nroutes: [{names: [chat], targets: [{deployment: a/b}]}]",
        "leads to a/b, which is none of the deployments",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_explained(tmp_path: Path, case: str) -> None:
    """The message says where, and what to write instead."""
    text, message = BAD_FILES[case]
    file = tmp_path / "router.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("payload", "expected"), [("", "Engine"), (", queueing: Router", "Router")])
def test_a_file_says_where_requests_wait(tmp_path: Path, payload: str, expected: str) -> None:
    """In the engines, unless it says otherwise."""
    file = tmp_path / "router.yaml"
    file.write_text(f"deployments: [{{name: a/b, servedNames: [x]{payload}}}]")
    assert read_config(file).deployments["a/b"].queueing == expected


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("kind", ["directory", "named pipe", "device"])
def test_what_is_no_file_is_explained(tmp_path: Path, kind: str) -> None:
    """It is reported at once: a pipe is not waited for."""
    path = tmp_path / "router.yaml"
    if kind == "directory":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory|is no regular file"):
        read_config(path)


@pytest.mark.parametrize("text", ["deployments: []", "{}", "--- {} # nothing yet"])
def test_a_fleet_without_deployments_is_said(tmp_path: Path, text: str) -> None:
    """What says so is taken at its word."""
    file = tmp_path / "router.yaml"
    file.write_text(text)
    assert not read_config(file).deployments


def test_aliases_are_for_those_who_repeat_themselves(tmp_path: Path) -> None:
    """Within their bound, aliases and merges are what they are in any YAML."""
    file = tmp_path / "router.yaml"
    file.write_text(
        "deployments:\n- &one {name: a/b, servedNames: [x]}\n- {<<: *one, name: a/c, servedNames: [y]}\n"
    )
    assert set(read_config(file).deployments) == {"a/b", "a/c"}


async def test_an_empty_file_leaves_the_fleet_as_it_was(tmp_path: Path) -> None:
    """Whatever is no fleet keeps the last one in use and says so; `deployments: []` is one, and is taken over."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        file = tmp_path / "router.yaml"
        good = file.read_text()

        async def is_stale(value: int) -> bool:
            return await r.metric("turnout_router_fleet_stale") == value

        for number, bad in enumerate(("", "deployments:\n", good.replace("deployments:", "deployment:"))):
            file.write_text(bad)
            await eventually_async(lambda: is_stale(1))
            assert await r.metric("turnout_router_fleet_rejected_total") == number + 1
            assert (await r.chat()).status_code == 200
            file.write_text(good)
            await eventually_async(lambda: is_stale(0))
        file.write_text("deployments: []\n")

        async def is_gone() -> bool:
            return (await r.chat()).status_code == 404

        await eventually_async(is_gone)
        assert await is_stale(0)


async def test_a_file_that_is_swapped_as_kubernetes_does_is_taken_over(tmp_path: Path) -> None:
    """A ConfigMap's mount is a link to a link to a folder, and only the middle one is replaced."""
    async with (
        mock_worker() as a,
        mock_worker() as b,
        running_router(tmp_path, config([("aggregated", a.url)])) as r,
    ):
        for name, worker in (("first", a), ("second", b)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "router.yaml").write_text(yaml.safe_dump(config([("aggregated", worker.url)])))
        (tmp_path / "..data").symlink_to("first")
        (tmp_path / "link").symlink_to("..data/router.yaml")
        (tmp_path / "link").rename(tmp_path / "router.yaml")
        (tmp_path / "..next").symlink_to("second")
        (tmp_path / "..next").rename(tmp_path / "..data")

        async def moved() -> bool:
            await r.chat()
            return bool(b.received)

        await eventually_async(moved)
        (tmp_path / "..data").unlink()

        async def is_stale() -> bool:
            return await r.metric("turnout_router_fleet_stale") == 1

        await eventually_async(is_stale)
        assert (await r.chat()).status_code == 200


async def test_a_file_that_is_being_written_is_given_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a good file is a good file: it is not taken for the whole while it grows."""
    path = tmp_path / "router.yaml"
    whole = config([("aggregated", f"http://127.0.0.1:{port}") for port in range(1, 9)])
    path.write_text(yaml.safe_dump(whole))
    source, observer = FileSource(path), Seen()
    supervisor = Supervisor(lambda _: None, logging.getLogger("test"))
    task = asyncio.create_task(source.run(observer, supervisor))
    await eventually(lambda: observer.workers == [8])
    coming = yaml.safe_dump(whole, width=1000).splitlines(keepends=True)
    path.write_text("")

    def stamp_while_it_grows(path: Path) -> Stamp | None:
        with path.open("a") as file:
            file.write(coming.pop(0) if coming else "")
        return stamp_of(path)

    monkeypatch.setattr(file_module, "_SETTLE_TRIES", 100)
    monkeypatch.setattr(file_module, "stamp_of", stamp_while_it_grows)
    await eventually(lambda: len(observer.workers) > 1, 30)
    assert observer.workers == [8, 8]
    task.cancel()


class Seen:
    """Observes a source; keeps how many workers each fleet had."""

    def __init__(self) -> None:
        self.workers: list[int] = []

    def changed(self, fleet: Fleet) -> None:
        self.workers.append(sum(len(group) for group in fleet.backends.values()))

    def stale(self, reason: str) -> None:
        assert not reason

    def rejected(self, what: str) -> None:
        raise AssertionError(what)


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


@pytest.mark.parametrize(
    "flag", ["--answer-timeout", "--first-byte-timeout", "--head-timeout", "--connect-timeout"]
)
def test_a_time_out_of_nothing_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would end every request before it has begun; 0 is accepted where it means that something is not done."""
    with pytest.raises(SystemExit):
        parse_options(["--config", "router.yaml", flag, "0"])
    assert "give a longer time" in capsys.readouterr().err
    assert parse_options(["--config", "router.yaml", "--scrape-interval", "0"]).scrape_interval == 0
