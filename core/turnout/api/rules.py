"""Constraints said twice in one place: in CEL for the API server, in Python for programs that read a resource elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

VALIDATIONS: Final = "x-kubernetes-validations"


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint on one value, with a message that says what to write instead.

    *cel* and *holds* say the same: the API server evaluates the one when an object is written, pydantic
    the other when an object is read, and a table of manifests in the tests is judged by both.
    Use it as annotation of a type (``Annotated[str, Rule(...)]``) or in ``Model.rules``.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field_path: str = ""
    """Where inside the value the fault lies, in the API server's form, such as ``.min``."""

    def validation(self) -> dict[str, str]:
        """Return the rule as an item of ``x-kubernetes-validations``."""
        item = {"rule": self.cel, "message": self.message}
        return {**item, "fieldPath": self.field_path} if self.field_path else item

    def check(self, value: Any) -> Any:
        """Return *value*. Raise ValueError with the rule's message where it does not hold."""
        if not self.holds(value):
            raise ValueError(self.message)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        result = handler(schema)
        return {**result, VALIDATIONS: [*result.get(VALIDATIONS, []), self.validation()]}


@dataclass(frozen=True, slots=True)
class Unique:
    """Annotation of a list whose items differ, in *key* (a field name) or, without one, as a whole.

    The API server then merges the list item by item, so that two field managers can share it.
    """

    key: str = ""

    def check(self, items: list[Any]) -> list[Any]:
        """Return *items*. Raise ValueError that names the first item that occurs twice."""
        seen: set[Hashable] = set()
        for item in items:
            identity = getattr(item, self.key) if self.key else item
            if identity in seen:
                raise ValueError(f"{identity!r} is listed twice: remove one")
            seen.add(identity)
        return items

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        result = handler(schema)
        if not self.key:
            return {**result, "x-kubernetes-list-type": "set"}
        return {**result, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}
