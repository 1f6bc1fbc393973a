"""A container's environment from env, envFrom and what the node adds."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from turnout_devcluster.node import fields
from turnout_devcluster.node.model import Json, Refusal
from turnout_devcluster.node.references import expand

Source = Literal["ConfigMap", "Secret"]
Objects = Mapping[tuple[Source, str], "Json | None"]
"""ConfigMaps and Secrets of the pod's namespace by kind and name; None where there is none."""


@dataclass(slots=True)
class _Values:
    """Variables as they accumulate, with the first refusal met."""

    known: dict[str, str]
    refusals: list[Refusal] = field(default_factory=list)


def content_of(obj: Json) -> dict[str, bytes]:
    """Return the keys of a ConfigMap or Secret with their bytes."""
    if obj.get("kind") == "Secret":
        return {k: base64.b64decode(v) for k, v in (obj.get("data") or {}).items()}
    texts = {k: v.encode() for k, v in (obj.get("data") or {}).items()}
    return texts | {k: base64.b64decode(v) for k, v in (obj.get("binaryData") or {}).items()}


def referenced(pod: Json) -> frozenset[tuple[Source, str]]:
    """Return every ConfigMap and Secret that the containers' variables and the volumes name."""
    return frozenset(_referenced(pod))


_REFERENCES: tuple[tuple[str, Source, str], ...] = (
    ("configMapKeyRef", "ConfigMap", "name"),
    ("configMapRef", "ConfigMap", "name"),
    ("configMap", "ConfigMap", "name"),
    ("secretKeyRef", "Secret", "name"),
    ("secretRef", "Secret", "name"),
    ("secret", "Secret", "secretName"),
    ("secret", "Secret", "name"),
)
"""How sources of variables and volumes name what they read. A projected secret has a ``name``."""


def _referenced(pod: Json) -> Iterator[tuple[Source, str]]:
    spec = pod["spec"]
    sources: list[Json] = list(spec.get("volumes") or ())
    for volume in spec.get("volumes") or ():
        sources += (volume.get("projected") or {}).get("sources") or ()
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        sources += [variable.get("valueFrom") or {} for variable in container.get("env") or ()]
        sources += container.get("envFrom") or ()
    for source in sources:
        for field_name, kind, key in _REFERENCES:
            if key in (source.get(field_name) or {}):
                yield kind, source[field_name][key]


def _from_key(kind: Source, reference: Json, objects: Objects) -> str | Refusal | None:
    """Return the value of one key, None where an optional one is missing."""
    name, key = reference.get("name", ""), reference["key"]
    obj = objects.get((kind, name))
    if obj is not None:
        content = content_of(obj)
        if key in content:
            return content[key].decode(errors="surrogateescape")
    if reference.get("optional"):
        return None
    what = f'{kind.lower()} "{name}" not found' if obj is None else f"no key {key} in {kind} {name}"
    return Refusal("CreateContainerConfigError", f"{what}: create it, or mark the reference optional")


def _value_from(
    source: Json, facts: fields.PodFacts, container: str, objects: Objects
) -> str | Refusal | None:
    if "fieldRef" in source:
        return fields.field(facts, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return fields.resource(facts, source["resourceFieldRef"], container)
    if "configMapKeyRef" in source:
        return _from_key("ConfigMap", source["configMapKeyRef"], objects)
    if "secretKeyRef" in source:
        return _from_key("Secret", source["secretKeyRef"], objects)
    return Refusal("CreateContainerConfigError", f"valueFrom {', '.join(source)} is not supported here")


def _add_all(values: _Values, sources: Json, objects: Objects) -> None:
    """Add what envFrom names, each key behind the prefix."""
    for kind, reference in (("ConfigMap", sources.get("configMapRef")), ("Secret", sources.get("secretRef"))):
        if reference is None:
            continue
        name = reference.get("name", "")
        obj = objects.get((kind, name))  # type: ignore[arg-type]  # the two literals above
        if obj is None and not reference.get("optional"):
            values.refusals.append(
                Refusal(
                    "CreateContainerConfigError",
                    f'{kind.lower()} "{name}" not found: create it, or mark the reference optional',
                )
            )
        prefix = sources.get("prefix", "")
        for key, value in content_of(obj or {}).items():
            values.known[prefix + key] = value.decode(errors="surrogateescape")


def environment(
    container: Json, facts: fields.PodFacts, objects: Objects, base: Mapping[str, str]
) -> dict[str, str] | Refusal:
    """Return the variables of *container*: *base*, then envFrom, then env, later ones winning.

    ``$(NAME)`` in a value sees what was defined before it. The first reference that cannot be
    resolved and is not optional refuses the whole.
    """
    values = _Values(dict(base))
    for sources in container.get("envFrom") or ():
        _add_all(values, sources, objects)
    for variable in container.get("env") or ():
        if "valueFrom" in variable:
            value = _value_from(variable["valueFrom"], facts, container["name"], objects)
        else:
            value = expand(str(variable.get("value", "")), values.known)
        if isinstance(value, Refusal):
            values.refusals.append(value)
        elif value is not None:
            values.known[variable["name"]] = value
    if values.refusals:
        return values.refusals[0]
    return {k: v.replace("\0", "") for k, v in values.known.items()}
