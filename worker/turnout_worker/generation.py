"""One request on its way out: from the engine's tokens to what its API's form makes of them.

A stream whose request fails before its first token has status 200 all the same, as vLLM has it: the error is its only
event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from turnout_worker.answer import End, Piece, Usage
from turnout_worker.errors import EngineFailedError
from turnout_worker.text import TOKEN_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.simulation import Finished
    from turnout_worker.answer import Form
    from turnout_worker.errors import AnswerError
    from turnout_worker.http import Exchange
    from turnout_worker.openai import CompletionRequest, PlannedOutput


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """What an answer carries beside its text."""

    form: Form
    error_body: Callable[[AnswerError], bytes]
    headers: tuple[tuple[str, str], ...]
    show_cached_tokens: bool
    cut_after: int | None = None
    """Cut the connection after so many tokens of a choice: an ordered fault."""
    abort_after: int | None = None
    """Have the engine give up after so many tokens of a choice: an ordered fault."""
    transfer_params: Callable[[Finished], dict[str, Any]] | None = None
    """Makes the kv_transfer_params of a pinned prompt."""


class Generation:
    """Writes what the engine does with one request to the client. `choices` follow the engine's sequences."""

    __slots__ = (
        "_abort_after",
        "_answer",
        "_exchange",
        "_failure",
        "_request",
        "abort",
        "choices",
        "model",
        "on_failed",
    )

    def __init__(
        self,
        request: CompletionRequest,
        exchange: Exchange,
        answer: GeneratedAnswer,
        on_fetch: Callable[[Choice, int], None],
    ) -> None:
        self._request = request
        self.model = request.model
        self._exchange = exchange
        self._answer = answer
        self._failure: EngineFailedError | None = None
        self.choices = [
            Choice(self, index, planned, on_fetch) for index, planned in enumerate(request.outputs)
        ]
        self.on_failed: Callable[[], None] | None = None
        """Called when one choice has failed, and with it the whole answer."""
        self.abort: Callable[[], None] | None = None
        """Has the engine give up all choices."""
        self._abort_after = answer.abort_after
        exchange.on_writable = self._catch_up

    @property
    def wants_tokens(self) -> bool:
        """Whether anything is to be written before the end."""
        answer = self._answer
        return self._request.stream or answer.cut_after is not None or answer.abort_after is not None

    def fail(self, failure: EngineFailedError) -> None:
        """Say why the request is about to be aborted."""
        self._failure = failure

    def progress(self, choice: Choice, output_tokens: int) -> None:
        """Write the tokens of *choice* that are new, if the client keeps up; what it missed goes out with the next."""
        cut = self._answer.cut_after
        if cut is not None and output_tokens >= cut:
            self._cut(choice, cut)
        elif self._abort_after is not None and output_tokens >= self._abort_after and self.abort is not None:
            self._abort_after = None
            self.abort()
        elif self._request.stream and output_tokens > choice.sent and self._exchange.writable:
            self._write_tokens(choice, output_tokens)

    def finished(self, choice: Choice) -> None:
        """Write the end of *choice*, and that of the answer with the last one.

        What was aborted, and not because of a failure, ends like what is whole, as vLLM has it.
        """
        exchange, event = self._exchange, choice.event
        if event is None:
            raise AssertionError("a choice is finished by an event")
        aborted = event.reason == "abort" and self._failure is None
        if self._answer.cut_after is not None and event.reason in {"stop", "length"}:
            self._cut(choice, min(self._answer.cut_after, event.output_tokens))
        elif event.reason not in {"stop", "length"} and not aborted:
            self._write_failure()
        elif self._request.stream:
            if exchange.writable or aborted:
                self._write_ends()
        elif all(other.event is not None for other in self.choices):
            exchange.respond(200, self._whole(event), self._answer.headers)

    def break_off(self) -> None:
        """End the answer without the engine: nothing more is known of this request."""
        if not self._exchange.open:
            return
        if self._failure is None:
            self._failure = EngineFailedError("EngineCore encountered an issue.")
        self.on_failed = None
        self._write_failure()

    def _cut(self, choice: Choice, tokens: int) -> None:
        """Cut the connection behind the first *tokens* tokens, however many the engine has made by now."""
        if self._request.stream and tokens > choice.sent and self._exchange.open:
            self._write_tokens(choice, tokens)
            self._exchange.break_off()
        else:
            self._exchange.abandon()

    def _write_tokens(self, choice: Choice, output_tokens: int) -> None:
        head, lead = self._begin()
        piece = choice.take(output_tokens)
        self._exchange.write(
            lead + self._answer.form.tokens(piece, self._usage(choice, output_tokens)), head=head
        )

    def _catch_up(self) -> None:
        self._write_ends()

    def _write_ends(self) -> None:
        """Write the ends of all choices that have one and whose end was not written."""
        due = [choice for choice in self.choices if choice.event is not None and not choice.closed]
        if not due:
            return
        head, lead = self._begin()
        form = self._answer.form
        parts = [lead]
        for choice in due:
            choice.closed = True
            parts.append(form.closing(choice.rest(), self._usage(choice, 0), choice.end))
        last = all(choice.closed for choice in self.choices)
        if last:
            parts.append(form.ending([choice.end for choice in self.choices], self._usage(None, 0)))
        self._exchange.write(b"".join(parts), head=head, last=last)

    def _write_failure(self) -> None:
        failure = self._failure or EngineFailedError("The request was aborted by the engine.")
        if self._exchange.streaming:
            self._exchange.write(self._answer.form.failure(failure), last=True)
        elif self._request.stream:
            refuse_in_stream(self._exchange, self._answer, failure)
        else:
            self._exchange.respond(failure.status, self._answer.error_body(failure), self._answer.headers)
        if self.on_failed is not None:
            self.on_failed()

    def _begin(self) -> tuple[bytes, bytes]:
        """Return the HTTP head and the first events, where they have not gone out."""
        if self._exchange.streaming:
            return b"", b""
        return self._exchange.start_stream(self._answer.headers), self._answer.form.opening()

    def _whole(self, event: Finished) -> bytes:
        make = self._answer.transfer_params
        params = make(event) if make is not None and event.pinned_until is not None else None
        return self._answer.form.whole([c.end for c in self.choices], self._usage(None, 0), params)

    def _usage(self, running: Choice | None, so_far: int) -> Usage:
        """Return the tokens by now: of ended choices as they ended, of *running*, if it has not, *so_far*."""
        first, remote = self.choices[0].event, self._request.remote
        cached = None
        if first is not None and self._answer.show_cached_tokens:
            # What a prompt's KV that came from afar had been taken from a cache there, as vLLM has it.
            cached = first.cached_tokens if remote is None else remote.cached_tokens
        output = 0
        for choice in self.choices:
            if choice.event is not None:
                output += choice.event.output_tokens
            else:
                output += so_far if choice is running else choice.sent
        return Usage(self._request.prompt_tokens, output, cached)


def refuse_in_stream(exchange: Exchange, answer: GeneratedAnswer, error: AnswerError) -> None:
    """Answer a request for a stream with *error* alone, as vLLM does on the request's path."""
    form = answer.form
    head = exchange.start_stream(answer.headers)
    exchange.write(form.refusal(error), head=head, last=not form.refusal_breaks_off)
    if form.refusal_breaks_off:
        exchange.break_off()


class Choice:
    """One of an answer's choices: follows one sequence of the engine, see `driver.Follower`."""

    __slots__ = (
        "_generation",
        "_index",
        "_on_fetch",
        "_planned",
        "closed",
        "event",
        "output",
        "sent",
        "wants_tokens",
    )

    def __init__(
        self,
        generation: Generation,
        index: int,
        planned: PlannedOutput,
        on_fetch: Callable[[Choice, int], None],
    ) -> None:
        self._generation = generation
        self._index = index
        self._on_fetch = on_fetch
        self._planned = planned
        self.output = planned.text
        self.sent = 0
        """Tokens written."""
        self.event: Finished | None = None
        """How it ended."""
        self.closed = False
        """Its end is written."""
        self.wants_tokens = generation.wants_tokens

    def fetch(self, tokens: int) -> None:
        """Pass on that the KV can be fetched."""
        self._on_fetch(self, tokens)

    def read_freed_blocks(self, output: bytes) -> None:
        """Send *output* instead: the KV belonged to another request."""
        self.output = output

    def progress(self, output_tokens: int) -> None:
        """Report that so many tokens are there."""
        self._generation.progress(self, output_tokens)

    def finished(self, event: Finished) -> None:
        """Report the end."""
        self.event = event
        self._generation.finished(self)

    def take(self, output_tokens: int) -> Piece:
        """Return what was not sent of the first *output_tokens* tokens."""
        first, self.sent = self.sent, output_tokens
        return Piece(self._index, self.output[first * TOKEN_BYTES : output_tokens * TOKEN_BYTES], first)

    def rest(self) -> Piece:
        """Return all that was not sent."""
        return Piece(self._index, self.end.text[self.sent * TOKEN_BYTES :], self.sent)

    @property
    def end(self) -> End:
        """How it ended, once it has: by itself, or where the engine gave it up."""
        if self.event is not None and self.event.reason == "abort":
            return End(self.output[: self.event.output_tokens * TOKEN_BYTES], "abort")
        return End(self.output, self._planned.finish_reason, self._planned.stop_reason)

    def break_off(self) -> None:
        """End the whole answer: nothing more is known of this choice."""
        self._generation.break_off()
