"""`turnout-worker fetch` as a process: what it prints, how it ends, and what it leaves when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

from support.sources_servers import COMMIT, FILES, Served
from turnout_worker.errors import ConfigurationError
from turnout_worker.main import parser
from turnout_worker.sources.options import fetch_requests

WORKER = str(Path(sysconfig.get_path("scripts")) / "turnout-worker")
SOURCE = "hf://acme/tiny"


def start(hub: Served, cache: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [WORKER, "fetch", "--model", SOURCE, "--endpoint", hub.url, "--cache", str(cache), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_fetch(hub: Served, tmp_path: Path) -> None:
    """It prints where the model lies, ends with 0, and says in its log how far it is."""
    status, out, err = ended(start(hub, tmp_path))
    assert status == 0, err
    folder = Path(out.strip().removeprefix(f"{SOURCE}: "))
    assert (folder / "model-1.safetensors").read_bytes() == FILES["model-1.safetensors"]
    assert f"{SOURCE}: 2.1 MB of 2.1 MB here (100 %)" in err


def test_dry_run(hub: Served, tmp_path: Path) -> None:
    """It lists files, sizes and the commit, and writes nothing."""
    status, out, err = ended(start(hub, tmp_path, "--dry-run", "--allow", "*.json"))
    assert status == 0, err
    assert out.splitlines()[0].split() == ["23", "config.json"]
    assert f"23  bytes (23 bytes) in 1 files of {SOURCE} at {COMMIT}, to be copied into {tmp_path}" in out
    assert list(tmp_path.iterdir()) == []


def test_last_line(hub: Served, tmp_path: Path) -> None:
    """A source that refuses ends it with 3, and its last line begins with the reason that the operator reads."""
    status, _, err = ended(start(hub, tmp_path, "--revision", "v9"))
    assert status == 3
    assert err.splitlines()[-1].startswith(
        "turnout-worker: RevisionNotFound: hf://acme/tiny has no revision v9"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed(hub: Served, tmp_path: Path, number: signal.Signals) -> None:
    """Killed while the weights come, it leaves nothing that is taken for complete, and the next one finishes the work."""
    hub.pass_on.clear()
    process = start(hub, tmp_path)
    assert hub.asked_for_weights.wait(60)
    process.send_signal(number)
    assert ended(process)[0] == (128 + number if number == signal.SIGTERM else -number)
    assert not list(tmp_path.rglob(".turnout-complete.json"))
    hub.pass_on.set()
    status, out, err = ended(start(hub, tmp_path))
    assert status == 0, err
    folder = Path(out.strip().removeprefix(f"{SOURCE}: "))
    assert json.loads((folder / ".turnout-complete.json").read_text())["version"] == COMMIT
    assert not list(folder.rglob("*.incomplete"))


def test_two_processes(hub: Served, tmp_path: Path) -> None:
    """Two pods that share a claim copy each file once."""
    hub.pass_on.clear()
    first = start(hub, tmp_path)
    assert hub.asked_for_weights.wait(60)
    second = start(hub, tmp_path, "--report-seconds", "0.1")
    assert second.stderr is not None
    assert any("waiting for another process" in line for line in iter(second.stderr.readline, ""))
    hub.pass_on.set()
    assert ended(first)[:2] == ended(second)[:2] == (0, f"{SOURCE}: {next(tmp_path.glob('hf-*[!k]'))}\n")
    assert hub.gets("model-1.safetensors") == [None]


def test_without_the_libraries(tmp_path: Path) -> None:
    """Where the extra is not installed, as in the simulated worker's image, it says what to install."""
    blocked = tmp_path / "filelock.py"
    blocked.write_text("raise ModuleNotFoundError('blocked', name='filelock')")
    done = subprocess.run(
        [WORKER, "fetch", "--model", SOURCE],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "fetching needs filelock, which is not installed: install turnout[fetch]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "tiny"], "--model 'tiny' is not a model source: begin with hf://"),
        (["--revision", "a b"], "--revision 'a b' is no revision: write a branch, a tag or a commit"),
        (["--model", "file:///m", "--revision", "v2"], "--revision v2 has no effect on file:///m"),
        (["--endpoint", "hub"], "--endpoint 'hub' is no URL: write one such as https://hub.example.com"),
        (["--adapter", "sql"], "--adapter 'sql' is no pair: write NAME=VALUE"),
        (["--adapter", "a/b=hf://a/b"], "--adapter 'a/b=hf://a/b' is no pair"),
        (["--adapter", "sql=b"], "--adapter 'b' is not a model source"),
        (["--adapter", "a=hf://a/b", "--adapter", "a=hf://a/c"], "--adapter: 'a' is given twice"),
        (["--adapter-revision", "sql=v1"], "--adapter-revision: there is no adapter sql"),
    ],
)
def test_wrong_flags(arguments: list[str], says: str) -> None:
    """Flags that cannot work are refused with what to write."""
    options = parser().parse_args(["fetch", "--model", SOURCE, *arguments])
    with pytest.raises(ConfigurationError) as refusal:
        fetch_requests(options)
    assert says in str(refusal.value)


def test_adapters(tmp_path: Path) -> None:
    """Adapters have revisions and mounts of their own; the endpoint is that of sources of the model's kind."""
    arguments = [
        "--adapter",
        "sql=hf://acme/sql",
        "--adapter-revision",
        "sql=v1",
        "--adapter",
        "de=pvc://a/de",
    ]
    options = parser().parse_args(
        [
            *("fetch", "--model", "s3://bucket/llama", "--endpoint", "http://minio:9000", *arguments),
            *("--mounted", str(tmp_path), "--cache-limit", "1000", "--allow", "*.json"),
        ]
    )
    model, adapters = fetch_requests(options)
    assert (model.endpoint, model.mounted, model.allow) == (
        "http://minio:9000",
        tmp_path / "model",
        ("*.json",),
    )
    assert {name: str(each.source) for name, each in adapters.items()} == {
        "sql": "hf://acme/sql",
        "de": "pvc://a/de",
    }
    sql, de = adapters["sql"], adapters["de"]
    assert (sql.revision, sql.endpoint, sql.kind, sql.allow) == ("v1", None, "adapter", ())
    assert de.mounted == tmp_path / "adapters" / "de"
    assert {each.limit_bytes for each in (model, sql, de)} == {1000}
