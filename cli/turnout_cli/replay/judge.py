"""One request's end judged: did it succeed, how long did it take, in the deployment's seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout_cli.replay.client import HTTP_OK, ServerAnswer
from turnout_cli.replay.figures import ReplayOutcome
from turnout_cli.replay.stream import Closing, error_message

if TYPE_CHECKING:
    from turnout_cli.replay.errors import RequestError

_NOTHING = Closing(done=False, prompt_tokens=0, output_tokens=0, cached_tokens=0, error=None)


def judge(
    result: ServerAnswer | RequestError,
    *,
    index: int,
    output_tokens: int,
    sent_at: float,
    lag_seconds: float,
    ended_at: float,
    time_scale: float,
) -> ReplayOutcome:
    """Return the outcome of request *index*, which asked for *output_tokens* and ended in *result*.

    *sent_at* and *ended_at* count from the replay's beginning. They and *lag_seconds* are wall seconds;
    the outcome's are theirs times *time_scale*.
    """
    status, closing, ttft, itl = 0, _NOTHING, None, None
    if isinstance(result, ServerAnswer):
        status = result.status
        if status == HTTP_OK:
            closing = result.stream.closing()
            ttft, itl = _latencies(result, closing.output_tokens)
    return ReplayOutcome(
        index=index,
        sent_at=sent_at * time_scale,
        lag_seconds=lag_seconds * time_scale,
        status=status,
        failure=_failure(result, closing, output_tokens),
        ttft_seconds=None if ttft is None else ttft * time_scale,
        itl_seconds=None if itl is None else itl * time_scale,
        duration_seconds=(ended_at - sent_at) * time_scale,
        prompt_tokens=closing.prompt_tokens,
        output_tokens=closing.output_tokens,
        cached_tokens=closing.cached_tokens,
    )


def _latencies(answer: ServerAnswer, output_tokens: int) -> tuple[float | None, float | None]:
    """Return time to first token and mean time between tokens, in wall seconds."""
    stream = answer.stream
    if stream.first_token_at is None or stream.last_token_at is None:
        return None, None
    ttft = stream.first_token_at - answer.sent_at
    if output_tokens < 2:  # noqa: PLR2004 - a time between tokens takes two
        return ttft, None
    return ttft, (stream.last_token_at - stream.first_token_at) / (output_tokens - 1)


def _failure(result: ServerAnswer | RequestError, closing: Closing, output_tokens: int) -> str | None:
    """Return why the request failed; None where all that was asked for came."""
    if not isinstance(result, ServerAnswer):
        return str(result)
    if result.status != HTTP_OK:
        return f"HTTP {result.status}: {error_message(result.body)}"
    if closing.error is not None:
        return f"the stream ended with an error: {closing.error}"
    if not closing.done:
        return "the stream ended without [DONE]"
    if closing.output_tokens != output_tokens:
        return f"{closing.output_tokens} tokens came where {output_tokens} were asked for"
    return None
