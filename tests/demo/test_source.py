"""Where the demo's parts come from, and what it says when one is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.demo_values import deployment
from turnout_cli.demo.errors import MissingError
from turnout_cli.demo.source import EXAMPLE, choose_traffic, find_checkout, read_manifest
from turnout_cli.main import app

ROOT = Path(__file__).parents[2]
LINE = {"timestamp": 0, "input_length": 40_000, "output_length": 9, "hash_ids": list(range(79))}


def test_the_checkout_is_found_from_within() -> None:
    """From any folder of the checkout the chart and the example are found."""
    assert find_checkout(ROOT / "docs") == ROOT


def test_a_given_trace_is_replayed_fitted(tmp_path: Path) -> None:
    """A trace from a file is named after it, cut to the minutes asked for and shortened to the model."""
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | {"timestamp": 600_000}) + "\n")
    traffic = choose_traffic(deployment(), checkout=ROOT, minutes=5, seed=0, file=path)
    assert traffic.trace.name == "mine.jsonl: the first 5 of 10 minutes"
    assert [request.input_tokens + request.output_tokens for request in traffic.trace.requests] == [32_704]
    assert traffic.clipped == 1


def test_the_data_folder_comes_before_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real traffic is used where it is, generated traffic where it is not, and the name says which."""
    monkeypatch.setenv("TURNOUT_DATA", str(tmp_path))
    generated = choose_traffic(deployment(), checkout=ROOT, minutes=1, seed=0)
    assert generated.trace.name.startswith("generated conversation traffic")
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "mooncake_conversation.jsonl").write_text(json.dumps(LINE))
    real = choose_traffic(deployment(), checkout=ROOT, minutes=1, seed=0)
    assert real.trace.name.startswith("mooncake_conversation.jsonl")


def test_the_time_scale_can_be_another() -> None:
    """The example is read as it stands, or with the time scale that was asked for."""
    path = ROOT / EXAMPLE
    assert read_manifest(path)["spec"]["engine"]["simulated"]["timeScale"] == 5
    assert read_manifest(path, time_scale=20)["spec"]["engine"]["simulated"]["timeScale"] == 20


@pytest.mark.parametrize("text", ["", "kind: [", "kind: LLMDeployment\n", "- 1\n"])
def test_a_file_that_is_no_deployment_is_refused(tmp_path: Path, text: str) -> None:
    """The message names the file."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(MissingError, match=r"x\.yaml holds no LLMDeployment"):
        read_manifest(path, time_scale=2)


def test_a_bad_trace_ends_the_demo_before_it_begins(tmp_path: Path) -> None:
    """Nothing is started for a trace that cannot be read: the line is named and the status is 1."""
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n")
    result = CliRunner().invoke(app, ["demo", "run", "--trace", str(path), "--name", "never"])
    assert result.exit_code == 1
    assert "bad.jsonl, line 1: timestamp must be a whole number" in result.stderr


def test_ending_no_demo_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo down` twice, or without a demo, says so and succeeds."""
    monkeypatch.setenv("TURNOUT_STATE", str(tmp_path))
    result = CliRunner().invoke(app, ["demo", "down"])
    assert result.exit_code == 0
    assert "no demo called demo is there" in result.stderr


@pytest.mark.parametrize("url", ["https://x", "http://"])
def test_a_replay_refuses_what_it_cannot_reach(url: str) -> None:
    """`turnout replay` with an address it cannot use says what to write, with status 2."""
    result = CliRunner().invoke(app, ["replay", "--url", url, "--model", "m", "--minutes", "0.1"])
    assert result.exit_code == 2
    assert "http://127.0.0.1:8080" in result.stderr
