"""OpenAI's Responses API: a conversation asked for and answered in its words, served by the same engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout_worker.answer import event
from turnout_worker.errors import BadRequestError, error_body

if TYPE_CHECKING:
    from turnout_worker.answer import End, Piece, Usage
    from turnout_worker.errors import AnswerError
    from turnout_worker.openai import CompletionRequest

_KEPT: Final = ("stream", "seed", "ignore_eos", "min_tokens", "stop", "kv_transfer_params", "model")
"""Fields that mean the same here as in a chat completion."""
_TEXTS: Final = {"input_text", "output_text", "text"}
_ECHOED: Final = (
    "instructions", "metadata", "temperature", "top_p", "tools", "tool_choice", "parallel_tool_calls", "max_output_tokens",
    "text", "truncation",
)  # fmt: skip
"""Fields of a request that its answer repeats."""


def as_chat(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the chat completion that *fields* amount to. Raise BadRequestError for what the model cannot read."""
    if fields.get("background"):
        raise BadRequestError("background is not supported: answers are not kept", "background")
    if fields.get("previous_response_id"):
        raise BadRequestError(
            "previous_response_id is not supported: answers are not kept", "previous_response_id"
        )
    messages = []
    instructions = fields.get("instructions")
    if isinstance(instructions, str) and instructions:
        messages.append({"role": "system", "content": instructions})
    given = fields.get("input")
    if isinstance(given, str) and given:
        messages.append({"role": "user", "content": given})
    elif isinstance(given, list) and given:
        messages += [_message(index, item) for index, item in enumerate(given)]
    else:
        raise BadRequestError("input must be a text or a list of at least one item", "input")
    chat: dict[str, Any] = {name: fields[name] for name in _KEPT if name in fields}
    if isinstance(text := fields.get("text"), dict):
        chat["response_format"] = text.get("format")
    return chat | {"messages": messages, "max_tokens": fields.get("max_output_tokens")}


def _message(index: int, item: object) -> dict[str, Any]:
    where = f"input[{index}]"
    if not isinstance(item, dict):
        raise BadRequestError(f"{where} must be an object", "input")
    match item.get("type", "message"):
        case "message":
            return {"role": item.get("role"), "content": _content(where, item.get("content"))}
        case "function_call":
            return {"role": "assistant", "content": f"{item.get('name')} {item.get('arguments')}"}
        case "function_call_output":
            return {"role": "tool", "content": _content(where, item.get("output"))}
        case "reasoning":
            return {"role": "assistant", "content": ""}
    raise BadRequestError(f"{where} is of a type that the model cannot read: {item.get('type')!r}", "input")


def _content(where: str, content: object) -> object:
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in _TEXTS:
            raise BadRequestError(
                f"{where}.content holds a part that is not text: the model reads text only", "input"
            )
    return [{"type": "text", "text": part.get("text")} for part in content]


class ResponseForm:
    """Writes typed, numbered events ending in `response.completed`, or a response object."""

    refusal_breaks_off = True

    def __init__(
        self, request: CompletionRequest, fields: dict[str, Any], request_id: str, created: int
    ) -> None:
        self._request = request
        self._echoed: dict[str, Any] = {name: fields[name] for name in _ECHOED if name in fields}
        self._id = f"resp_{request_id}"
        self._item_id = f"msg_{request_id}"
        self._created = created
        self._number = 0

    def opening(self) -> bytes:
        """Return the events that begin a response with one message of one part."""
        where = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        return b"".join(
            (
                self._begun(),
                self._event("response.output_item.added", output_index=0, item=self._item("in_progress", [])),
                self._event("response.content_part.added", **where, part=_part("")),
            )
        )

    def tokens(self, piece: Piece, usage: Usage) -> bytes:  # noqa: ARG002 - the form's signature
        """Return a delta."""
        where = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        delta = piece.text.decode(errors="replace")
        return self._event("response.output_text.delta", **where, delta=delta, logprobs=[])

    def closing(self, piece: Piece, usage: Usage, end: End) -> bytes:  # noqa: ARG002 - the form's signature
        """Return the last delta, if there is one."""
        return self.tokens(piece, usage) if piece.text else b""

    def ending(self, ends: list[End], usage: Usage) -> bytes:
        """Return the ends of part, message and response. What was aborted is `completed` here, as with vLLM."""
        said = ends[0].text.decode(errors="replace")
        where = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        status = "incomplete" if ends[0].reason == "length" else "completed"
        item = self._item(status, [_part(said)])
        return b"".join(
            (
                self._event("response.output_text.done", **where, text=said, logprobs=[]),
                self._event("response.content_part.done", **where, part=_part(said)),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event("response.completed", response=self._response(status, [item], usage)),
            )
        )

    def refusal(self, error: AnswerError) -> bytes:  # noqa: ARG002 - vLLM does not say it
        """Return the events that hold nothing yet. The cause is not sent: the connection breaks behind them."""
        return self._begun()

    def failure(self, error: AnswerError) -> bytes:
        """Return an error event."""
        return b"event: error\ndata: %b\n\n" % error_body(error)

    def whole(self, ends: list[End], usage: Usage, transfer_params: dict[str, Any] | None) -> bytes:
        """Return the response object."""
        status = {"length": "incomplete", "abort": "cancelled"}.get(ends[0].reason, "completed")
        item = self._item(
            status if status != "cancelled" else "completed", [_part(ends[0].text.decode(errors="replace"))]
        )
        value = self._response(status, [item], usage)
        return orjson.dumps(value | {"kv_transfer_params": transfer_params})

    def _begun(self) -> bytes:
        begun = self._response("in_progress", [], None)
        return self._event("response.created", response=begun) + self._event(
            "response.in_progress", response=begun
        )

    def _event(self, name: str, **fields: Any) -> bytes:
        value = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return event(value, name)

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self, status: str, output: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._request.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            **self._echoed,
            "usage": None if usage is None else _usage(usage),
        }


def _part(said: str) -> dict[str, Any]:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }
