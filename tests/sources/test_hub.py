"""Repositories of a hub, fetched by its real client from a server that speaks its API."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from support.router_running import eventually
from support.sources_servers import COMMIT, FILES, WEIGHTS, Served
from turnout.sources import parse_source
from turnout_worker import errors
from turnout_worker.sources.fetch import fetch, plan
from turnout_worker.sources.request import FetchRequest, Progress

if TYPE_CHECKING:
    from pathlib import Path

COPIED = {name: data for name, data in FILES.items() if name != "pytorch_model.bin"}
"""What is copied without patterns: the weights in safetensors are enough."""
SIZE = sum(map(len, COPIED.values()))


def request(hub: Served, cache: Path, source: str = "hf://acme/tiny", **fields: Any) -> FetchRequest:
    return FetchRequest(parse_source(source), cache, endpoint=hub.url, **fields)


def content(folder: Path) -> dict[str, bytes]:
    """Return the files of *folder* that are the model's own."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: data for name, data in named.items() if not name.startswith((".cache/", ".turnout-"))}


def test_whole_repository(hub: Served, tmp_path: Path) -> None:
    """The folder holds the repository's files, without the same weights in another form, and progress ends at all bytes."""
    seen: list[Progress] = []
    folder = fetch(request(hub, tmp_path), on_progress=seen.append)
    assert content(folder) == COPIED
    assert folder.parent == tmp_path
    assert seen[-1] == Progress(SIZE, SIZE)


def test_second_time(hub: Served, tmp_path: Path) -> None:
    """What is complete is used without asking the hub, which may be out of reach by then."""
    folder = fetch(request(hub, tmp_path))
    hub.status = 503
    assert fetch(request(hub, tmp_path)) == folder


def test_commit_of_the_marker(hub: Served, tmp_path: Path) -> None:
    """The marker says which commit the branch stood for."""
    folder = fetch(request(hub, tmp_path))
    marker = json.loads((folder / ".turnout-complete.json").read_text())
    assert (marker["revision"], marker["version"]) == ("main", COMMIT)


def test_damaged_after_completion(hub: Served, tmp_path: Path) -> None:
    """A complete folder in which a file was cut is completed anew, before it is used."""
    folder = fetch(request(hub, tmp_path))
    with (folder / "model-1.safetensors").open("r+b") as file:
        file.truncate(100)
    assert content(fetch(request(hub, tmp_path))) == COPIED


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"allow": ("*.json",)}, {"config.json"}),
        (
            {"ignore": ("original/*", "tokenizer/")},
            {"config.json", "model-1.safetensors", "model-2.safetensors"},
        ),
        ({"allow": ("config.json", "*.bin")}, {"config.json", "pytorch_model.bin"}),
        ({"ignore": ("*.safetensors", "*/*")}, {"config.json", "pytorch_model.bin"}),
    ],
)
def test_patterns(hub: Served, tmp_path: Path, fields: dict[str, Any], names: set[str]) -> None:
    """Patterns choose files; other forms of the weights come where they are asked for, or are the only one."""
    assert set(content(fetch(request(hub, tmp_path, **fields)))) == names


def test_other_patterns_other_folder(hub: Served, tmp_path: Path) -> None:
    """A part of a model never stands in for another part in a shared cache."""
    part = fetch(request(hub, tmp_path, allow=("*.json",)))
    assert content(fetch(request(hub, tmp_path))) == COPIED
    assert set(content(part)) == {"config.json"}


def test_plan(hub: Served, tmp_path: Path) -> None:
    """A plan lists files and sizes and copies nothing."""
    listing = plan(request(hub, tmp_path))
    assert {file.path: file.size for file in listing.files} == {
        name: len(data) for name, data in COPIED.items()
    }
    assert (listing.version, listing.size) == (COMMIT, SIZE)
    assert list(tmp_path.iterdir()) == []


def test_token(hub: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN opens a private repository."""
    hub.token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert content(fetch(request(hub, tmp_path))) == COPIED


def test_cut_connection(hub: Served, tmp_path: Path) -> None:
    """A cut connection is resumed behind the last 10 MiB that came, and the file is whole."""
    hub.files["model-1.safetensors"] = WEIGHTS * 12
    hub.cut["model-1.safetensors"] = 11 << 20
    folder = fetch(request(hub, tmp_path))
    assert (folder / "model-1.safetensors").read_bytes() == WEIGHTS * 12
    assert hub.gets("model-1.safetensors") == [None, f"bytes={10 << 20}-"]


def test_resumed(hub: Served, tmp_path: Path) -> None:
    """A download that failed goes on with the files that are missing, and nothing says before that it is complete."""
    hub.damaged.add("model-2.safetensors")
    with pytest.raises(errors.ChecksumError):
        fetch(request(hub, tmp_path))
    assert not list(tmp_path.rglob(".turnout-complete.json"))
    hub.damaged.clear()
    before = len(hub.gets("model-1.safetensors"))
    assert content(fetch(request(hub, tmp_path))) == COPIED
    assert before == len(hub.gets("model-1.safetensors")) == 1
    assert len(hub.gets("model-2.safetensors")) == 2


def test_left_by_a_killed_process(hub: Served, tmp_path: Path) -> None:
    """A part that a killed process has left takes no room beside the file that is copied again."""
    asked = request(hub, tmp_path)
    left = asked.folder / ".cache/huggingface/download/abc.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(WEIGHTS)
    fetch(asked)
    assert not left.exists()


async def test_one_downloads_the_other_waits(
    hub: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two that want the same folder one copies; the other waits for it and asks the hub for nothing."""
    caplog.set_level("INFO")
    hub.pass_on.clear()
    asked = request(hub, tmp_path, report_seconds=0.05)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, asked)
        assert hub.asked_for_weights.wait(60)
        second = pool.submit(fetch, asked)
        await eventually(lambda: "waiting for another process" in caplog.text)
        hub.pass_on.set()
        assert first.result(60) == second.result(60)
    assert hub.gets("model-1.safetensors") == [None]


def test_lock_has_a_deadline(hub: Served, tmp_path: Path) -> None:
    """Who waits for a process that hangs gives up with a sentence."""
    hub.pass_on.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, request(hub, tmp_path))
        assert hub.asked_for_weights.wait(60)
        with pytest.raises(
            errors.LockedError, match=r"another process has been copying it into .* for more than 0 s"
        ):
            fetch(request(hub, tmp_path, lock_seconds=0.1))
        hub.pass_on.set()
        first.result(60)
