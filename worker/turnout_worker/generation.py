"""One completion on its way out: from the engine's tokens to JSON or server-sent events.

The status line of a stream goes out with its first token, so that whatever fails before it still ends in an honest
HTTP status.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout_worker import openai
from turnout_worker.errors import EngineFailedError
from turnout_worker.text import TOKEN_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.engine import Finished
    from turnout_worker.http import Exchange
    from turnout_worker.openai import CompletionRequest

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer carries beside its text."""

    id: str
    """The request's id, as the client sees it."""
    created: int
    headers: tuple[tuple[str, str], ...]
    cached_tokens_told: bool
    cut_after: int | None = None
    """Cut the connection after so many tokens: an ordered fault."""
    transfer_params: Callable[[Finished], dict[str, Any]] | None = None
    """Makes the kv_transfer_params of a pinned prompt."""


class Generation:
    """Writes what the engine does with one request to the client."""

    __slots__ = (
        "_answer", "_blocks", "_exchange", "_failure", "_finished", "_id", "_on_fetch", "_output", "_prefix",
        "_request", "_sent", "wants_tokens",
    )  # fmt: skip

    def __init__(
        self,
        request: CompletionRequest,
        exchange: Exchange,
        answer: Answer,
        on_fetch: Callable[[Generation, int], None],
    ) -> None:
        self._request = request
        self._exchange = exchange
        self._answer = answer
        self._on_fetch = on_fetch
        self._id = f"{'chatcmpl' if request.kind == 'chat' else 'cmpl'}-{answer.id}"
        self._output = request.output
        self._prefix = b""
        self._sent = 0
        self._finished: Finished | None = None
        self._failure: EngineFailedError | None = None
        self.wants_tokens = request.stream or answer.cut_after is not None
        exchange.on_writable = self._catch_up

    def fetch(self, tokens: int) -> None:
        """Pass on that the KV can be fetched."""
        self._on_fetch(self, tokens)

    def read_freed_blocks(self, output: bytes) -> None:
        """Say *output* instead: the KV was another's."""
        self._output = output

    def fail(self, failure: EngineFailedError) -> None:
        """Say why the request is about to be aborted."""
        self._failure = failure

    def progress(self, output_tokens: int) -> None:
        """Write the tokens that are new, if the client keeps up; what it missed goes out with the next."""
        cut = self._answer.cut_after
        if cut is not None and output_tokens >= cut:
            self._exchange.abandon()
        elif self._request.stream and output_tokens > self._sent and self._exchange.writable:
            self._write_tokens(output_tokens)

    def finished(self, event: Finished) -> None:
        """Write the end."""
        exchange = self._exchange
        if self._answer.cut_after is not None and event.reason in {"stop", "length"}:
            exchange.abandon()
        elif event.reason not in {"stop", "length"}:
            self._write_failure()
        elif not self._request.stream:
            exchange.respond(200, self._whole(event), self._answer.headers)
        elif exchange.writable:
            self._write_end(event)
        else:
            self._finished = event

    def _catch_up(self) -> None:
        if self._finished is not None:
            event, self._finished = self._finished, None
            self._write_end(event)

    # Streams

    def _write_tokens(self, output_tokens: int) -> None:
        head, lead = self._begin()
        piece = self._output[self._sent * TOKEN_BYTES : output_tokens * TOKEN_BYTES]
        self._sent = output_tokens
        if self._request.continuous_usage:
            data = self._event(self._chunk(piece.decode(), None, None), usage=(output_tokens, None))
        else:
            middle, end = _CONTENT[self._request.kind]
            data = b"%b%b%b%b" % (self._prefix, middle, piece, end)
        self._exchange.write(lead + data, head=head)

    def _write_end(self, event: Finished) -> None:
        head, lead = self._begin()
        piece = self._output[self._sent * TOKEN_BYTES :]
        last = self._chunk(
            piece.decode(errors="replace"), self._request.finish_reason, self._request.stop_reason
        )
        data = lead + self._event(
            last, usage=(event.output_tokens, event) if self._request.continuous_usage else None
        )
        if self._request.include_usage:
            data += self._event([], usage=(event.output_tokens, event))
        self._exchange.write(data + DONE, head=head, last=True)

    def _write_failure(self) -> None:
        failure = self._failure or EngineFailedError("The request was aborted by the engine.")
        body = openai.error_body(failure)
        if self._exchange.streaming:
            self._exchange.write(b"data: %b\n\n%b" % (body, DONE), last=True)
        else:
            self._exchange.respond(failure.status, body, self._answer.headers)

    def _begin(self) -> tuple[bytes, bytes]:
        """Return the HTTP head and the first event, where they have not gone out."""
        if self._exchange.streaming:
            return b"", b""
        head = self._exchange.start_stream(self._answer.headers)
        self._prefix = b"data: " + orjson.dumps(self._envelope())[:-1] + b',"choices":[{"index":0,'
        if self._request.kind == "text":
            return head, b""
        role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return head, self._event([{"index": 0, **role}])

    def _chunk(
        self, content: str, finish_reason: str | None, stop_reason: str | None
    ) -> list[dict[str, Any]]:
        said = {"text": content} if self._request.kind == "text" else {"delta": {"content": content}}
        end = {"logprobs": None, "finish_reason": finish_reason, "stop_reason": stop_reason}
        return [{"index": 0, **said, **end}]

    def _event(
        self, choices: list[dict[str, Any]], usage: tuple[int, Finished | None] | None = None
    ) -> bytes:
        value = {**self._envelope(), "choices": choices}
        if usage is not None:
            value["usage"] = self._usage(*usage)
        return b"data: %b\n\n" % orjson.dumps(value)

    def _envelope(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._request.kind == "chat" else "text_completion"
        return {"id": self._id, "object": kind, "created": self._answer.created, "model": self._request.model}

    # Whole answers

    def _whole(self, event: Finished) -> bytes:
        content = self._output.decode(errors="replace")
        chat = self._request.kind == "chat"
        said = {"message": {"role": "assistant", "content": content}} if chat else {"text": content}
        choice = {
            "index": 0,
            **said,
            "logprobs": None,
            "finish_reason": self._request.finish_reason,
            "stop_reason": self._request.stop_reason,
        }
        make = self._answer.transfer_params
        return orjson.dumps(
            {
                **self._envelope(),
                "object": "chat.completion" if chat else "text_completion",
                "choices": [choice],
                "usage": self._usage(event.output_tokens, event),
                "kv_transfer_params": make(event)
                if make is not None and event.pinned_until is not None
                else None,
            }
        )

    def _usage(self, output_tokens: int, event: Finished | None) -> dict[str, Any]:
        cached = event.cached_tokens if event is not None and self._answer.cached_tokens_told else None
        return openai.usage(self._request.prompt_tokens, output_tokens, cached)


_CONTENT: Final = {
    "chat": (b'"delta":{"content":"', b'"},"logprobs":null,"finish_reason":null}]}\n\n'),
    "text": (b'"text":"', b'","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'),
}
"""What stands before and behind the text of a chunk. The model says nothing that JSON would have to escape."""
