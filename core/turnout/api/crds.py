"""CustomResourceDefinitions from the pydantic models: the models are the one place where a field is described."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, NoDefault

from turnout.api.budget import TokenBudget
from turnout.api.deployment import LLMDeployment
from turnout.api.route import LLMRoute
from turnout.api.rules import VALIDATIONS
from turnout.terms import GROUP, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema

    from turnout.api.meta import Model

_DROPPED: Final = frozenset({"title", "additionalProperties", "const"})
"""Keys of JSON schema that a structural schema has no use for: it prunes what it does not know by itself."""
_KEPT: Final = frozenset({
    "default", "description", "enum", "format", "maximum", "maxItems", "maxLength", "minimum", "minItems",
    "minLength", "required", "type", VALIDATIONS, "x-kubernetes-list-map-keys", "x-kubernetes-list-type",
})  # fmt: skip
_ORDER: Final = {key: place for place, key in enumerate(("type", "description", "default"))}


def _column(
    name: str, path: str, of: str = "string", *, wide: bool = False, about: str = ""
) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": of, "jsonPath": path}
    if about:
        column["description"] = about
    return {**column, "priority": 1} if wide else column


def _ready(part: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{part}'


_AGE: Final = _column("Age", ".metadata.creationTimestamp", "date")
_MESSAGE: Final = _column("Message", _ready("message"), wide=True, about="What Ready says.")

_NAMES: Final[dict[type[Model], dict[str, Any]]] = {
    LLMDeployment: {"plural": "llmdeployments", "singular": "llmdeployment", "shortNames": ["llmd"]},
    LLMRoute: {"plural": "llmroutes", "singular": "llmroute", "shortNames": ["llmr"]},
    TokenBudget: {"plural": "tokenbudgets", "singular": "tokenbudget", "shortNames": ["tb"]},
}
_COLUMNS: Final[dict[type[Model], list[dict[str, Any]]]] = {
    LLMDeployment: [
        _column("Ready", _ready("status"), about="Whether requests are served."),
        _column("Prefill", ".status.prefill.summary", about="Ready and desired prefill replicas."),
        _column("Decode", ".status.decode.summary", about="Ready and desired decode replicas."),
        _column("Goodput%", ".status.goodputPercent", "integer", about="Requests that met both objectives."),
        _column("Model", ".spec.model.source"),
        _column("Revision", ".status.revision", wide=True, about="The model revision that serves."),
        _column("Mode", ".spec.scaling.mode", wide=True, about="Automatic, Advisory or Paused."),
        _AGE,
        _MESSAGE,
    ],
    LLMRoute: [
        _column("Ready", _ready("status"), about="Whether its names lead to targets that exist."),
        _column("Names", ".spec.names", about="What clients call."),
        _AGE,
        _MESSAGE,
    ],
    TokenBudget: [
        _column("Ready", _ready("status"), about="Whether all keys are valid."),
        _column("Models", ".spec.models", about="Names that the keys may call; none listed: all."),
        _column("Scope", ".spec.scope", wide=True, about="Whose names the keys open."),
        _AGE,
        _MESSAGE,
    ],
}


def custom_resource_definitions() -> dict[str, dict[str, Any]]:
    """Return the CRDs by file name, ``PLURAL.yaml``: the same models give the same text."""
    return {f"{names['plural']}.yaml": _definition(model) for model, names in _NAMES.items()}


def structural_schema(model: type[Model]) -> dict[str, Any]:
    """Return the OpenAPI v3 schema of *model* in the form that the API server accepts as structural.

    References are inlined, ``anyOf`` with null becomes an optional field, defaults are filled in down to
    the leaves of what has one, so that the API server completes an object as pydantic would. The status
    has no defaults: what was not written is absent. Raise ValueError for a part of JSON schema that
    would be lost on the way.
    """
    schema = model.model_json_schema(schema_generator=_WithFactories)
    root = _inline(schema, schema.get("$defs", {}))
    properties = root["properties"]
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    if "status" in properties:
        properties["status"] = _without_defaults(properties["status"])
    root["required"] = ["spec"]
    return root


def _definition(model: type[Model]) -> dict[str, Any]:
    names = _NAMES[model]
    schema = structural_schema(model)
    subresources: dict[str, Any] = (
        {"subresources": {"status": {}}} if "status" in schema["properties"] else {}
    )
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                **names,
                "kind": model.__name__,
                "listKind": f"{model.__name__}List",
                "categories": ["turnout"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": _COLUMNS[model],
                    **subresources,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


class _WithFactories(GenerateJsonSchema):
    """JSON schema that also has the defaults that factories make."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        if factory is None or schema.get("default_factory_takes_data"):
            return super().get_default_value(schema)
        value = cast("Callable[[], Any]", factory)()  # as was just asked
        return value if value is not None else NoDefault

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, BaseModel):
            return dft.model_dump(mode="json", by_alias=True, exclude_none=True)
        return super().encode_default(dft)


def _inline(schema: Mapping[str, Any], definitions: Mapping[str, JsonSchemaValue]) -> dict[str, Any]:
    """Return *schema* without references, every key of it either translated, kept or dropped on purpose."""
    result: dict[str, Any] = {}
    for key, value in _resolve(schema, definitions).items():
        if key == "properties":
            result[key] = {name: _inline(field, definitions) for name, field in value.items()}
        elif key == "items":
            result[key] = _inline(value, definitions)
        elif key in _KEPT:
            result[key] = value
        elif key not in _DROPPED:
            raise ValueError(f"{key} has no place in a structural schema: {value!r}")
    if "const" in schema:
        result.setdefault("enum", [schema["const"]])
    if result.get("default", ...) is None:
        del result["default"]
    return dict(sorted(result.items(), key=lambda item: _ORDER.get(item[0], len(_ORDER))))


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, JsonSchemaValue]) -> dict[str, Any]:
    """Return *schema* with its reference or its one alternative to null merged in; its own words win."""
    own = {key: value for key, value in schema.items() if key not in {"$ref", "$defs", "anyOf"}}
    if "$ref" in schema:
        merged = _resolve(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    elif "anyOf" in schema:
        alternatives = [option for option in schema["anyOf"] if option != {"type": "null"}]
        if len(alternatives) != 1:
            raise ValueError(f"a field has one type: {alternatives!r}")
        merged = _resolve(alternatives[0], definitions)
    else:
        return own
    validations = [*merged.get(VALIDATIONS, []), *own.get(VALIDATIONS, [])]
    return {**merged, **own, **({VALIDATIONS: validations} if validations else {})}


def _without_defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in kept:
        kept["properties"] = {name: _without_defaults(field) for name, field in schema["properties"].items()}
    if "items" in kept:
        kept["items"] = _without_defaults(schema["items"])
    return kept
