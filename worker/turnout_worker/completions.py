"""Chat completions and text completions: the shapes of their answers, whole and in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout_worker import text
from turnout_worker.answer import event
from turnout_worker.errors import error_body

if TYPE_CHECKING:
    from turnout_worker.answer import End, Piece, Usage
    from turnout_worker.errors import AnswerError
    from turnout_worker.openai import CompletionRequest

DONE: Final = b"data: [DONE]\n\n"
_CHAT: Final = (b'"delta":{"content":"', b'"},"logprobs":null,"finish_reason":null}]}\n\n')
_TEXT: Final = (b'"text":"', b'","logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n')
"""What stands before and behind the text of a plain chunk. The model says nothing that JSON would have to escape."""


class CompletionForm:
    """Writes chunks ending in [DONE], or a completion object."""

    refusal_breaks_off = False

    def __init__(self, request: CompletionRequest, request_id: str, created: int) -> None:
        self._request = request
        self._chat = request.kind == "chat"
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{request_id}"
        self._created = created
        envelope = orjson.dumps(self._envelope("chat.completion.chunk" if self._chat else "text_completion"))
        self._prefix = b"data: " + envelope[:-1] + b',"choices":[{"index":%d,'
        self._plain = not request.continuous_usage and request.logprobs is None

    def opening(self) -> bytes:
        """Return the chunks that name the roles."""
        if not self._chat:
            return b""
        start = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return b"".join(
            self._chunk([{"index": index, **start}], None) for index in range(len(self._request.outputs))
        )

    def tokens(self, piece: Piece, usage: Usage) -> bytes:
        """Return a chunk."""
        if self._plain:
            before, behind = _CHAT if self._chat else _TEXT
            return self._prefix % piece.choice + before + piece.text + behind
        return self._chunk([self._choice(piece, None, None)], usage)

    def closing(self, piece: Piece, usage: Usage, end: End) -> bytes:
        """Return the chunk with the reason of the end."""
        return self._chunk([self._choice(piece, end.reason, end.stop_reason)], usage)

    def ending(self, ends: list[End], usage: Usage) -> bytes:  # noqa: ARG002 - the form's signature
        """Return the usage, where it was asked for, and [DONE]."""
        if not self._request.include_usage:
            return DONE
        value = {**self._envelope(), "choices": [], "usage": usage_object(usage)}
        return event(value) + DONE

    def refusal(self, error: AnswerError) -> bytes:
        """Return the error object and [DONE]: nothing else, the role neither."""
        return self.failure(error)

    def failure(self, error: AnswerError) -> bytes:
        """Return the error object and [DONE], as vLLM does."""
        return b"data: %b\n\n%b" % (error_body(error), DONE)

    def whole(self, ends: list[End], usage: Usage, transfer_params: dict[str, Any] | None) -> bytes:
        """Return the completion object."""
        return orjson.dumps(
            {
                **self._envelope("chat.completion" if self._chat else "text_completion"),
                "choices": [self._whole_choice(index, end) for index, end in enumerate(ends)],
                "usage": usage_object(usage),
                "kv_transfer_params": transfer_params,
            }
        )

    def _whole_choice(self, index: int, end: End) -> dict[str, Any]:
        content = end.text.decode(errors="replace")
        shape = {"message": {"role": "assistant", "content": content}} if self._chat else {"text": content}
        return {
            "index": index,
            **shape,
            "logprobs": self._logprobs(end.text, 0),
            "finish_reason": end.reason,
            "stop_reason": end.stop_reason,
        }

    def _choice(self, piece: Piece, finish_reason: str | None, stop_reason: str | None) -> dict[str, Any]:
        content = piece.text.decode(errors="replace")
        return {
            "index": piece.choice,
            **({"delta": {"content": content}} if self._chat else {"text": content}),
            "logprobs": self._logprobs(piece.text, piece.first) if piece.text else None,
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None) -> bytes:
        value = {**self._envelope(), "choices": choices}
        if self._request.continuous_usage and usage is not None:
            value["usage"] = usage_object(usage)
        return event(value)

    def _envelope(self, kind: str | None = None) -> dict[str, Any]:
        kind = kind or ("chat.completion.chunk" if self._chat else "text_completion")
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}

    def _logprobs(self, said: bytes, first: int) -> dict[str, Any] | None:
        """Return the log probabilities of the tokens of *said*: the model finds all its words equally likely."""
        count = self._request.logprobs
        if count is None:
            return None
        width, likely = text.TOKEN_BYTES, text.log_probability()
        tokens = [said[at : at + width] for at in range(0, len(said), width)]
        words = text.alternatives(count)
        if self._chat:
            others = [_token(word, likely) for word in words]
            return {"content": [{**_token(token, likely), "top_logprobs": others} for token in tokens]}
        return {
            "tokens": [token.decode(errors="replace") for token in tokens],
            "token_logprobs": [likely] * len(tokens),
            "top_logprobs": [
                {word.decode(errors="replace"): likely for word in (token, *words)} for token in tokens
            ],
            "text_offset": [(first + number) * width for number in range(len(tokens))],
        }


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's usage object of a completion."""
    cached = usage.cached_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "completion_tokens": usage.output_tokens,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
    }


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}
