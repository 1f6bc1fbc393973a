"""Streams read in pieces: when text began, how they ended, however the network cut them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from support.replay_server import DONE, text_event, usage_event
from turnout_cli.replay.stream import HEAD_BYTES, TAIL_BYTES, StreamReader, error_message

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
STREAM = ROLE + text_event("a") + text_event("b") + usage_event(5, 2) + DONE


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    """Cut anywhere, the stream says the same, and text begins with the piece that completes its first event."""
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = StreamReader()
    first = None
    for at, (begin, end) in enumerate(pairwise(edges)):
        reader.feed(STREAM[begin:end], float(at))
        if first is None and end >= len(ROLE + text_event("a")):
            first = float(at)
    closing = reader.closing()
    assert reader.first_token_at == first
    assert closing.done
    assert (closing.prompt_tokens, closing.output_tokens, closing.cached_tokens) == (5, 2, 3)
    assert closing.error is None
    assert reader.bytes_received == len(STREAM)


def test_the_role_is_no_token() -> None:
    """The opening event carries a role and no text: the first token is yet to come."""
    reader = StreamReader()
    reader.feed(ROLE, 1.0)
    assert reader.first_token_at is None
    reader.feed(text_event("a"), 2.0)
    assert reader.first_token_at == 2.0
    reader.feed(text_event("b"), 3.0)
    assert (reader.first_token_at, reader.last_token_at) == (2.0, 3.0)


def test_text_completions_count_too() -> None:
    """/v1/completions puts its text elsewhere in the event."""
    reader = StreamReader()
    reader.feed(b'data: {"choices":[{"index":0,"text":"a"}]}\n\n', 1.0)
    assert reader.first_token_at == 1.0


def test_a_broken_stream_is_not_done() -> None:
    """A stream that stops in mid-event has no [DONE] and no usage."""
    reader = StreamReader()
    reader.feed(STREAM[: len(ROLE) + 30], 1.0)
    assert reader.closing().done is False
    assert reader.closing().output_tokens == 0


def test_an_error_event_is_found() -> None:
    """An error inside the stream is reported with its message, although the status was 200."""
    reader = StreamReader()
    reader.feed(ROLE + text_event("a"), 1.0)
    reader.feed(b'data: {"error":{"message":"worker died","code":502}}\n\n', 2.0)
    assert reader.closing().error == "worker died"
    assert reader.closing().done is False


def test_text_about_errors_is_no_error() -> None:
    """Words of the answer are never mistaken for an error event."""
    reader = StreamReader()
    reader.feed(ROLE + text_event(r"the \"error\" of my ways") + usage_event(5, 1) + DONE, 1.0)
    assert reader.closing().error is None


def test_what_is_kept_is_bounded() -> None:
    """A stream that never ends, or never yields text, costs no more than its bounds."""
    reader = StreamReader()
    for _ in range(2 * HEAD_BYTES // 65_536):
        reader.feed(b": ping" * 10_922, 1.0)
    reader.feed(b"\n\n" + STREAM, 2.0)
    for _ in range(100):
        reader.feed(text_event("c" * 1000), 3.0)
    assert len(reader._tail) <= TAIL_BYTES
    assert reader.first_token_at == 2.0


def test_error_messages_of_other_servers() -> None:
    """OpenAI's object gives its message; anything else its beginning; nothing says so."""
    assert error_message(b'{"error":{"message":"no such model","type":"x"}}') == "no such model"
    assert error_message(b"<html>bad gateway</html>") == "<html>bad gateway</html>"
    assert error_message(b'{"detail":"x"}') == '{"detail":"x"}'
    assert error_message(b"") == "empty answer"
