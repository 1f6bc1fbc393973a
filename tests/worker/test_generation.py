"""What a generation writes when its client does not keep up: on a real connection over a transport that is full."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from turnout.simulation import Finished
from turnout_worker import openai
from turnout_worker.completions import CompletionForm
from turnout_worker.errors import error_body
from turnout_worker.generation import GeneratedAnswer, Generation
from turnout_worker.http import Exchange, HttpConnection

if TYPE_CHECKING:
    from turnout_worker.openai import CompletionRequest

END = Finished(
    at=1.0,
    id="r",
    reason="length",
    prompt_tokens=1,
    cached_tokens=0,
    output_tokens=9,
    arrived_at=0.0,
    scheduled_at=0.0,
    first_token_at=0.1,
)


class FullTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        return


def asked() -> CompletionRequest:
    body = orjson.dumps({"prompt": "x", "max_tokens": 9, "ignore_eos": True, "stream": True})
    return openai.parse(body, "text", served_names=("m",), max_length=100, seed=0, transfers=False)


async def test_nothing_is_written_while_the_client_does_not_read() -> None:
    """Tokens and the end wait while the transport is full, and go out together when it is not."""
    exchanges: list[Exchange] = []
    transport = FullTransport()
    connection = HttpConnection(exchanges.append, set(), lambda *_: None)
    connection.connection_made(transport)
    connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    request = asked()
    answer = GeneratedAnswer(CompletionForm(request, "r", 0), error_body, (), show_cached_tokens=True)
    (choice,) = Generation(request, exchanges[0], answer, lambda *_: None).choices

    choice.progress(2)
    before = transport.written
    assert request.outputs[0].text[:8] in before
    connection.pause_writing()
    choice.progress(5)
    choice.finished(END)
    assert transport.written == before
    assert connection.answering
    connection.resume_writing()
    rest = transport.written.removeprefix(before)
    assert request.outputs[0].text[8:] in rest
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert not connection.answering
    connection.connection_lost(None)
