"""Reading traces in Mooncake's format: what is accepted, and the message where it is not."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from turnout_simulator.traces import TraceError, TraceRequest, read_trace

if TYPE_CHECKING:
    from pathlib import Path

GOOD = {"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [0, 5]}


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_request_is_read_with_its_units(tmp_path: Path) -> None:
    """Milliseconds become seconds, ids become the prompt's blocks, and the file names the trace."""
    trace = read_trace(written(tmp_path, json.dumps(GOOD)))
    assert trace.name == "trace.jsonl"
    assert trace.requests == (TraceRequest(3.0, 600, 7, (0, 5)),)


def test_requests_come_in_order_of_arrival(tmp_path: Path) -> None:
    """A file that is out of order is put in order; blank lines are no requests."""
    late = json.dumps(GOOD | {"timestamp": 9000})
    trace = read_trace(written(tmp_path, late, "", json.dumps(GOOD)))
    assert [request.arrival_seconds for request in trace.requests] == [3.0, 9.0]
    assert trace.duration_seconds == 9.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON object"),
        ("[1]", "expected a JSON object"),
        (json.dumps(GOOD | {"timestamp": -1}), "timestamp must be a whole number of at least 0"),
        (json.dumps(GOOD | {"timestamp": 1.5}), "timestamp must be a whole number"),
        (json.dumps(GOOD | {"input_length": 0}), "input_length must be a whole number of at least 1"),
        (json.dumps(GOOD | {"input_length": True}), "input_length must be a whole number"),
        (json.dumps(GOOD | {"output_length": "7"}), "output_length must be a whole number"),
        (json.dumps({key: GOOD[key] for key in GOOD if key != "hash_ids"}), "hash_ids must be a list"),
        (json.dumps(GOOD | {"hash_ids": [0, "a"]}), "hash_ids must be a list of whole numbers"),
        (json.dumps(GOOD | {"hash_ids": [0]}), "600 takes 2 blocks of 512 tokens, hash_ids names 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """The message holds the file, the line's number and what was expected there."""
    path = written(tmp_path, json.dumps(GOOD), line)
    with pytest.raises(TraceError, match=re.escape(f"{path}, line 2: ") + f".*{re.escape(message)}"):
        read_trace(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """A trace without requests would replay nothing and look like success."""
    with pytest.raises(TraceError, match="holds no request"):
        read_trace(written(tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message says which file could not be read."""
    with pytest.raises(TraceError, match=r"nowhere\.jsonl cannot be read"):
        read_trace(tmp_path / "nowhere.jsonl")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A compressed file given by mistake ends in the same error, not in a codec's."""
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(path)
