"""Anthropic's Messages API: a conversation asked for and answered in its words, served by the same engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout_worker.answer import event
from turnout_worker.errors import BadRequestError

if TYPE_CHECKING:
    from turnout_worker.answer import End, Piece, Usage
    from turnout_worker.errors import AnswerError
    from turnout_worker.openai import CompletionRequest

_KEPT: Final = ("stream", "seed", "ignore_eos", "min_tokens", "kv_transfer_params", "model")
"""Fields that mean the same here as in a chat completion. ignore_eos, seed and min_tokens are of the simulation."""
_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens"}
"""What was aborted has none."""
_MOST_SHOWN: Final = 50
"""Characters of a wrong value in pydantic's messages."""


def as_chat(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the chat completion that *fields* amount to. Raise BadRequestError for what the model cannot read."""
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
    chat |= {
        "messages": messages,
        "max_tokens": fields.get("max_tokens"),
        "stop": fields.get("stop_sequences"),
    }
    if isinstance(wanted := fields.get("output_config"), dict):
        chat["response_format"] = wanted.get("format")
    return chat | _tools(fields)


def _tools(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the tools, and which of them must be called, in a chat completion's fields."""
    given, choice = fields.get("tools"), fields.get("tool_choice")
    if not isinstance(given, list) or not isinstance(choice, dict):
        return {}
    functions = [
        {"type": "function", "function": {"name": tool.get("name"), "parameters": tool.get("input_schema")}}
        for tool in given
        if isinstance(tool, dict)
    ]
    named = {"type": "function", "function": {"name": choice.get("name")}}
    chosen = {"any": "required", "tool": named}.get(str(choice.get("type")), "auto")
    return {"tools": functions, "tool_choice": chosen}


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
    """Return *error* as vLLM says it on Anthropic's paths, where the body could be read."""
    return orjson.dumps({"type": "error", "error": {"type": error.type, "message": error.message}})


def _internal_error(error: AnswerError) -> bytes:
    """Return the event that vLLM makes of an error inside a stream.

    It takes the chat completion's error event for a chunk and sends pydantic's message about that: status and
    cause stand in its text only, which pydantic cuts in its middle.
    """
    chunk = {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.status.value,
        }
    }
    shown = repr(chunk)
    if len(shown) > _MOST_SHOWN:
        shown = f"{shown[: _MOST_SHOWN // 2]}...{shown[1 - _MOST_SHOWN // 2 :]}"
    lines = ["2 validation errors for ChatCompletionStreamResponse"]
    for name in ("model", "choices"):
        lines += [name, f"  Field required [type=missing, input_value={shown}, input_type=dict]"]
        lines.append("    For further information visit https://errors.pydantic.dev/2.14/v/missing")
    message = "\n".join(lines)
    value = {"type": "error", "error": {"type": "internal_error", "message": message}}
    return b"event: error\ndata: %b\n\n" % orjson.dumps(value)


class MessageForm:
    """Writes typed events ending in `message_stop`, or a message object."""

    refusal_breaks_off = False

    def __init__(self, request: CompletionRequest, request_id: str) -> None:
        self._request = request
        self._id = f"msg_{request_id}"

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

    def closing(self, piece: Piece, usage: Usage, end: End) -> bytes:  # noqa: ARG002 - the form's signature
        """Return the last delta, if there is one."""
        return self.tokens(piece, usage) if piece.text else b""

    def ending(self, ends: list[End], usage: Usage) -> bytes:
        """Return the ends of block and message, with usage."""
        reason, sequence = _end(ends[0])
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

    def refusal(self, error: AnswerError) -> bytes:
        """Return an error event."""
        return _internal_error(error)

    def failure(self, error: AnswerError) -> bytes:
        """Return an error event."""
        return _internal_error(error)

    def whole(self, ends: list[End], usage: Usage, transfer_params: dict[str, Any] | None) -> bytes:
        """Return the message object."""
        content = [{"type": "text", "text": ends[0].text.decode(errors="replace")}]
        value = self._message(content, *_end(ends[0])) | {"usage": _usage(usage)}
        if transfer_params is not None:
            value["kv_transfer_params"] = transfer_params
        return orjson.dumps(value)

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


def _end(end: End) -> tuple[str | None, str | None]:
    if end.stop_reason is not None:
        return "stop_sequence", end.stop_reason
    return _STOP_REASONS.get(end.reason), None


def _usage(usage: Usage) -> dict[str, Any]:
    """Return Anthropic's usage object, in which tokens that were cached are no part of `input_tokens`."""
    if usage.cached_tokens is None:
        return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.output_tokens}
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
    }
