"""Facts of a prompt from a request's body: its approximate number of tokens, and whether its cache can be moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES_PER_TOKEN: Final = 4.0
"""Mean bytes of UTF-8 text per token, the usual figure for English under byte-pair encodings."""


def estimate_prompt_tokens(
    body: Mapping[str, Any],
    fields: tuple[str, ...] = ("messages", "prompt"),
    bytes_per_token: float = BYTES_PER_TOKEN,
    *,
    tools_bytes: int = 0,
) -> int:
    """Return about how many tokens the prompt in *fields* of a request has: its text's bytes / *bytes_per_token*.

    Text is counted wherever the APIs put it: a text or a list of texts, the contents of messages and items, their
    text parts; and the definitions of tools, *tools_bytes* of JSON, which chat templates write into the prompt. Token ids are
    counted exactly. What it does not understand counts as nothing: the worker judges it.
    """
    tokens = int(tools_bytes / bytes_per_token)
    for name in fields:
        value = body.get(name)
        if value is None:
            continue
        if name == "messages":
            tokens += int(_messages_bytes(value) / bytes_per_token)
        else:
            tokens += _prompt_tokens(value, bytes_per_token)
    return tokens


def needs_local_prefill(body: Mapping[str, Any]) -> bool:
    """Return whether only the decoding worker can compute this prompt.

    So it is with several choices, beams or prompts in one request (the exchange of caches is for one sequence)
    and with log probabilities of the prompt, which the prefill worker would keep to itself.
    """
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    return (
        several
        or _above_one(body.get("n"))
        or _above_one(body.get("best_of"))
        or body.get("echo") is True
        or body.get("use_beam_search") is True
        or body.get("prompt_logprobs") is not None
    )


def _above_one(value: object) -> bool:
    return isinstance(value, int) and value > 1


def _messages_bytes(messages: object) -> int:
    if not isinstance(messages, list):
        return 0
    total = 0
    for message in messages:
        if isinstance(message, dict):
            total += _content_bytes(message.get("content"))
    return total


def _prompt_tokens(prompt: object, bytes_per_token: float) -> int:
    if isinstance(prompt, str):
        return int(_utf8_bytes(prompt) / bytes_per_token)
    if isinstance(prompt, dict):
        return int(_part_bytes(prompt) / bytes_per_token)
    if not isinstance(prompt, list) or not prompt:
        return 0
    if isinstance(prompt[0], int):
        return len(prompt)
    tokens = 0
    for part in prompt:
        if isinstance(part, str):
            tokens += int(_utf8_bytes(part) / bytes_per_token)
        elif isinstance(part, list):
            tokens += len(part)
        elif isinstance(part, dict):
            tokens += int(_part_bytes(part) / bytes_per_token)
    return tokens


def _part_bytes(part: Mapping[str, Any]) -> int:
    """Return the bytes of an item's or part's text: its own, its content's, or a function's result."""
    text = part.get("text")
    if isinstance(text, str):
        return _utf8_bytes(text)
    return _content_bytes(part.get("content")) + _content_bytes(part.get("output"))


def _content_bytes(content: object) -> int:
    if isinstance(content, str):
        return _utf8_bytes(content)
    if not isinstance(content, list):
        return 0
    total = 0
    for part in content:
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            total += _utf8_bytes(text)
    return total


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
