"""The demo with a real model: what it takes from a stream, and what it shows. `make demo ENGINE=vllm` runs the whole."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from turnout_cli.demo.errors import DemoError
from turnout_cli.demo.vllm import Conversation, Question, report, table, take


def delta(text: str | None) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]})


def test_words_and_times_are_taken_from_a_stream() -> None:
    """The role's chunk has no text, so the first token comes with the second."""
    question = Question("Why?", asked_at=10.0)
    for at, line in enumerate(("", delta(""), delta("Be"), delta("cause"), "data: [DONE]"), start=11):
        take(question, line, float(at))
    assert (question.answer, question.tokens, question.error) == ("Because", 2, "")
    assert (question.first_seconds, question.token_seconds) == (3.0, 1.0)


def test_an_error_in_a_stream_is_kept() -> None:
    question = Question("Why?")
    take(question, 'data: {"error": {"message": "the stream broke", "code": 502}}', 1.0)
    assert question.error == "the stream broke"


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        (Question("Why?"), ["Why?"]),
        (
            Question("Why?", answer="Be\ncause", asked_at=1.0, first_at=2.0, last_at=3.0, tokens=3),
            ["Be cause", "1.0 s", "500 ms"],
        ),
        (Question("Why?", error="HTTP 503"), ["HTTP 503"]),
    ],
)
def test_the_table_shows_what_has_come(question: Question, shown: list[str]) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(Conversation([question], {"external_kv_transfer": 42, "local_compute": 7})))
    text = " ".join(console.export_text().split())
    for part in (*shown, "over NIXL: 42", "by the decode worker: 7"):
        assert part in text


def test_a_demo_in_which_no_cache_moved_has_failed(capsys: Any) -> None:
    """The decode worker would have computed the prompts itself, unseen."""
    question = Question("Why?", answer="Because", first_at=2.0, tokens=1)
    with pytest.raises(DemoError, match="no KV cache came over NIXL"):
        report(Conversation([question], {"local_compute": 30}))
    report(Conversation([question], {"external_kv_transfer": 30}))
    assert "1 of 1 questions answered, 1 tokens" in capsys.readouterr().out
