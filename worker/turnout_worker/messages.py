"""Anthropic's Messages API: a conversation asked for and answered in its words, served by the same engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout_worker.answer import event
from turnout_worker.errors import BadRequestError

if TYPE_CHECKING:
    from turnout_worker.answer import Piece, Usage
    from turnout_worker.errors import AnswerError
    from turnout_worker.openai import CompletionRequest

_KEPT: Final = ("stream", "seed", "ignore_eos", "min_tokens", "kv_transfer_params", "model")
"""Fields that mean the same here as in a chat completion. ignore_eos, seed and min_tokens are of the simulation."""
_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens"}


def as_chat(fields: dict[str, Any], *, counting: bool = False) -> dict[str, Any]:
    """Return the chat completion that *fields* amount to. Raise BadRequestError for what the model cannot read.

    *counting*: only the prompt matters, so max_tokens may be missing.
    """
    most = fields.get("max_tokens")
    if not counting and (type(most) is not int or most < 1):
        raise BadRequestError("max_tokens must be a whole number of at least 1", "max_tokens")
    given = fields.get("messages")
    if not isinstance(given, list) or not given:
        raise BadRequestError("messages must be a list of at least one message", "messages")
    system = _content("system", fields.get("system") or "")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for index, message in enumerate(given):
        if not isinstance(message, dict):
            raise BadRequestError(f"messages[{index}] must be an object", "messages")
        content = _content(f"messages[{index}].content", message.get("content"))
        messages.append({"role": message.get("role"), "content": content})
    chat: dict[str, Any] = {name: fields[name] for name in _KEPT if name in fields}
    return chat | {"messages": messages, "max_tokens": most, "stop": fields.get("stop_sequences")}


def _content(where: str, content: object) -> str:
    """Return the text of *content*: a text, or blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequestError(f"{where} must be a text or a list of blocks", "messages")
    return "".join(_block(where, block) for block in content)


def _block(where: str, block: object) -> str:
    if isinstance(block, dict):
        match block.get("type"):
            case "text" if isinstance(block.get("text"), str):
                return str(block["text"])
            case "tool_use":
                return f"{block.get('name')} {orjson.dumps(block.get('input')).decode()}"
            case "tool_result":
                return _content(where, block.get("content") or "")
            case "thinking" | "redacted_thinking":
                return ""
    raise BadRequestError(f"{where} holds a block that is not text: the model reads text only", "messages")


def error_body(error: AnswerError) -> bytes:
    """Return *error* as vLLM says it on Anthropic's paths."""
    return orjson.dumps({"type": "error", "error": {"type": error.type, "message": error.message}})


class MessageForm:
    """Writes typed events ending in `message_stop`, or a message object."""

    def __init__(self, request: CompletionRequest, known_as: str) -> None:
        self._request = request
        self._id = f"msg_{known_as}"

    def opening(self) -> bytes:
        """Return the events that begin a message with one text block."""
        usage = {"input_tokens": self._request.prompt_tokens, "output_tokens": 0}
        start = {"type": "message_start", "message": self._message([], None, None) | {"usage": usage}}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        return event(start, "message_start") + event(block, "content_block_start")

    def tokens(self, piece: Piece, usage: Usage) -> bytes:  # noqa: ARG002 - the form's signature
        """Return a delta."""
        delta = {"type": "text_delta", "text": piece.text.decode(errors="replace")}
        return event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")

    def closing(self, piece: Piece, usage: Usage) -> bytes:
        """Return the last delta, if there is one."""
        return self.tokens(piece, usage) if piece.text else b""

    def ending(self, texts: list[bytes], usage: Usage) -> bytes:  # noqa: ARG002 - the form's signature
        """Return the ends of block and message, with usage."""
        reason, sequence = self._end
        last = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": _usage(usage),
        }
        return b"".join(
            (
                event({"type": "content_block_stop", "index": 0}, "content_block_stop"),
                event(last, "message_delta"),
                event({"type": "message_stop"}, "message_stop"),
            )
        )

    def failure(self, error: AnswerError) -> bytes:
        """Return an error event."""
        return b"event: error\ndata: %b\n\n" % error_body(error)

    def whole(self, texts: list[bytes], usage: Usage, transfer_params: dict[str, Any] | None) -> bytes:
        """Return the message object."""
        content = [{"type": "text", "text": texts[0].decode(errors="replace")}]
        value = self._message(content, *self._end) | {"usage": _usage(usage)}
        if transfer_params is not None:
            value["kv_transfer_params"] = transfer_params
        return orjson.dumps(value)

    @property
    def _end(self) -> tuple[str, str | None]:
        said = self._request.said[0]
        if said.stop_reason is not None:
            return "stop_sequence", said.stop_reason
        return _STOP_REASONS[said.finish_reason], None

    def _message(
        self, content: list[dict[str, Any]], stop_reason: str | None, stop_sequence: str | None
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self._request.model,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
        }


def _usage(usage: Usage) -> dict[str, Any]:
    """Return Anthropic's usage object, in which tokens that were cached are no part of `input_tokens`."""
    if usage.cached_tokens is None:
        return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.output_tokens}
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
    }
