"""What vLLM checks only in the engine's input processor: constraints on the output, token ids, log probabilities.

A request that is refused here has been taken already: a streamed one has its status 200, and learns of it by an event.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout_worker.errors import EngineInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from turnout_worker.body import Kind

VOCABULARY: Final = 128_256
"""Token ids that sampling parameters may name: Llama 3's. They have no effect here, and the prompt's are not checked."""
MAX_LOGPROBS: Final = 20
"""Most alternatives in the answer for a token, as in vLLM."""
_MAX_PATTERNS: Final = 8_192
"""Most characters of all regular expressions of a request: what compiling them costs."""
_MAX_NODES: Final = 20_000
"""Most schemas of a request, the parts of schemas included."""
_MAX_REFERENCES: Final = 65_536
"""Most characters of all references of a request: what following them costs."""
_KINDS: Final = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
_LOOK_AROUND: Final = re.compile(r"\(\?(?:=|!|<=|<!)")
_SCHEMAS_BY_NAME: Final = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMAS: Final = ("items", "additionalProperties", "not")


def check(fields: dict[str, Any], kind: Kind) -> None:
    """Check the fields of a completion request that was understood otherwise. Raise EngineInputError."""
    _check_prompt(fields, kind)
    _check_logprobs(fields, kind)
    _check_tokens(fields)
    if fields.get("thinking_token_budget") is not None:
        raise EngineInputError(
            "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-config to use "
            "thinking_token_budget."
        )
    constraints = _Constraints()
    for schema in _schemas(fields):
        constraints.check_schema(schema)
    if isinstance(wanted := fields.get("structured_outputs"), dict):
        constraints.check_structured(wanted)


def _check_prompt(fields: dict[str, Any], kind: Kind) -> None:
    # [[]] is refused earlier: it is no list of token ids.
    if (kind == "text" and fields.get("prompt") == [""]) or fields.get("truncate_prompt_tokens") == 0:
        raise EngineInputError("The decoder prompt cannot be empty")


def _check_logprobs(fields: dict[str, Any], kind: Kind) -> None:
    name = "logprobs" if kind == "text" else "top_logprobs"
    asked = fields.get(name)
    if not isinstance(asked, int) or (kind != "text" and not fields.get("logprobs")):
        return
    count = VOCABULARY if asked == -1 else asked
    if not 0 <= count <= MAX_LOGPROBS:
        raise EngineInputError(
            f"Requested sample logprobs of {count}, which is greater than max allowed: {MAX_LOGPROBS} "
            f"(parameter=logprobs, value={count})",
            "logprobs",
        )


def _check_tokens(fields: dict[str, Any]) -> None:
    allowed = fields.get("allowed_token_ids")
    if allowed == []:
        raise EngineInputError("allowed_token_ids is not None and empty!", "allowed_token_ids")
    for name in ("allowed_token_ids", "stop_token_ids"):
        _check_known(name, fields.get(name) or ())
    biases = fields.get("logit_bias") or {}
    try:
        tokens = [int(token) for token in biases]
    except ValueError as error:
        raise EngineInputError(f"logit_bias names what is no token id: {error}", "logit_bias") from error
    _check_known("logit_bias", tokens)


def _check_known(name: str, tokens: Iterable[int]) -> None:
    strange = [token for token in tokens if not 0 <= token < VOCABULARY]
    if strange:
        raise EngineInputError(
            f"token_id(s) {strange[:10]} in {name} contain out-of-vocab token ids. Vocabulary size: {VOCABULARY}",
            name,
        )


def _schemas(fields: dict[str, Any]) -> Iterator[object]:
    """Yield the JSON schemas that the output must follow."""
    wanted = fields.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        named = wanted.get("json_schema")
        # A chat completion has it in an object of its own, a response beside the type.
        yield named.get("schema") if isinstance(named, dict) else wanted.get("schema")
    choice, tools = fields.get("tool_choice"), fields.get("tools")
    if (choice == "required" or isinstance(choice, dict)) and isinstance(tools, list):
        name = choice.get("function") if isinstance(choice, dict) else None
        for tool in tools:
            function = tool.get("function") if isinstance(tool, dict) else None
            if isinstance(function, dict) and (
                not isinstance(name, dict) or name.get("name") == function.get("name")
            ):
                yield function.get("parameters")


class _Constraints:
    """Checks what a request's output must follow, within bounds on what that may cost."""

    def __init__(self) -> None:
        self._nodes = _MAX_NODES
        self._patterns = _MAX_PATTERNS
        self._references = _MAX_REFERENCES

    def check_structured(self, wanted: dict[str, Any]) -> None:
        """Check vLLM's own field for it."""
        schema, regex, choice, grammar = (wanted.get(name) for name in ("json", "regex", "choice", "grammar"))
        if isinstance(schema, str):
            try:
                schema = orjson.loads(schema)
            except orjson.JSONDecodeError as error:
                raise EngineInputError("Invalid JSON grammar specification.", "structured_outputs") from error
        self.check_schema(schema)
        if regex is not None:
            self._check_regex(regex)
        if choice is not None and not (isinstance(choice, list) and choice):
            raise EngineInputError("Choices should be a non-empty list of strings", "structured_outputs")
        if grammar is not None and not (isinstance(grammar, str) and ("::=" in grammar or ":" in grammar)):
            raise EngineInputError("Invalid grammar specification.", "structured_outputs")

    def check_schema(self, schema: object) -> None:
        """Raise EngineInputError where *schema* is none. None: there is none to check."""
        left = [] if schema is None else [schema]
        while left:
            self._nodes -= 1
            if self._nodes < 0:
                raise _bad_schema(f"it has more than {_MAX_NODES} parts")
            one = left.pop()
            if isinstance(one, dict):
                self._check_node(one, schema)
                left += _parts(one)
            elif not isinstance(one, bool):
                raise _bad_schema(f"Schema should be an object or bool, got {one!r:.60}")

    def _check_node(self, node: dict[str, Any], schema: object) -> None:
        kinds = node.get("type")
        for kind in kinds if isinstance(kinds, list) else [] if kinds is None else [kinds]:
            if not isinstance(kind, str) or kind not in _KINDS:
                raise _bad_schema(f"Invalid type: {kind!s:.60}")
        reference = node.get("$ref")
        if reference is not None:
            self._references -= len(reference) if isinstance(reference, str) else 0
            if self._references < 0 or not _resolves(schema, reference):
                raise _bad_schema(f"Cannot find field {reference!r:.60} in the schema")
        if (pattern := node.get("pattern")) is not None:
            self._check_regex(pattern)
        if (values := node.get("enum")) is not None and not (isinstance(values, list) and values):
            raise _bad_schema("enum must be a non-empty array")

    def _check_regex(self, pattern: object) -> None:
        self._patterns -= len(pattern) if isinstance(pattern, str) else 0
        if not isinstance(pattern, str) or self._patterns < 0:
            raise EngineInputError("Error parsing regex: it is no text, or too long", "structured_outputs")
        if _LOOK_AROUND.search(pattern):
            raise EngineInputError(
                "Regex uses unsupported feature for structured outputs: look-around", "structured_outputs"
            )
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise EngineInputError(f"Error parsing regex: {error}", "structured_outputs") from error


def _parts(node: dict[str, Any]) -> Iterator[object]:
    """Yield the schemas that a schema is made of."""
    for name in _SCHEMAS_BY_NAME:
        named = node.get(name)
        if not isinstance(named, dict | None):
            raise _bad_schema(f"{name} must be an object")
        yield from (named or {}).values()
    for name in _SCHEMA_LISTS:
        listed = node.get(name)
        if not isinstance(listed, list | None):
            raise _bad_schema(f"{name} must be an array")
        yield from listed or ()
    for name in _SCHEMAS:
        if node.get(name) is not None:
            yield node[name]


def _resolves(schema: object, reference: object) -> bool:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return False
    found: Any = schema
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            return False
        found = found[name]
    return True


def _bad_schema(what: str) -> EngineInputError:
    return EngineInputError(f"Grammar error: {what}")
