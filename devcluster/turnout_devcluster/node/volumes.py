"""What the volumes of a pod hold: files for configMap, secret, downwardAPI and projected ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from turnout_devcluster.node import fields
from turnout_devcluster.node.environment import Objects, Source, content_of
from turnout_devcluster.node.model import Json, Refusal

DEFAULT_MODE = 0o644
DEFAULT_TOKEN_SECONDS = 3600
GIVEN = ("emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected")
"""Kinds of volumes that this node can give."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a volume."""

    data: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A service-account token that a projected volume asks for."""

    audience: str
    """Empty: the API server's own."""
    expiration_seconds: int


Tokens = Mapping[TokenRequest, str]
Tree = Mapping[str, File]
"""Files by path relative to the volume's folder."""


@dataclass(slots=True)
class _Build:
    """Files as they accumulate, with the first refusal met."""

    facts: fields.PodFacts
    objects: Objects
    tokens: Tokens
    files: dict[str, File] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def add(self, path: str, data: bytes, mode: int) -> None:
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            self.refusals.append(
                Refusal("FailedMount", f"the path {path!r} leaves its volume: make it relative")
            )
            return
        self.files[str(relative)] = File(data, mode)

    def add_object(self, kind: Source, name: str, source: Json, mode: int) -> None:
        obj = self.objects.get((kind, name))
        if obj is None:
            if not source.get("optional"):
                self.refusals.append(
                    Refusal(
                        "FailedMount", f'{kind.lower()} "{name}" not found: create it, or mark it optional'
                    )
                )
            return
        content = content_of(obj)
        items = source.get("items")
        if items is None:
            for key, data in content.items():
                self.add(key, data, mode)
            return
        for item in items:
            if item["key"] in content:
                self.add(item["path"], content[item["key"]], item.get("mode", mode))
            elif not source.get("optional"):
                self.refusals.append(
                    Refusal("FailedMount", f"no key {item['key']} in {kind} {name}: add it there")
                )

    def add_downward(self, items: Iterable[Json], mode: int) -> None:
        for item in items:
            value = (
                fields.field(self.facts, item["fieldRef"]["fieldPath"])
                if "fieldRef" in item
                else fields.resource(self.facts, item["resourceFieldRef"], "")
            )
            if isinstance(value, Refusal):
                self.refusals.append(Refusal("FailedMount", value.message))
            else:
                self.add(item["path"], value.encode(), item.get("mode", mode))

    def add_projection(self, source: Json, mode: int) -> None:
        if "configMap" in source:
            self.add_object("ConfigMap", source["configMap"].get("name", ""), source["configMap"], mode)
        elif "secret" in source:
            self.add_object("Secret", source["secret"].get("name", ""), source["secret"], mode)
        elif "downwardAPI" in source:
            self.add_downward(source["downwardAPI"].get("items") or (), mode)
        elif "serviceAccountToken" in source:
            request = _token_request(source["serviceAccountToken"])
            # Readable by the owner alone: on this machine every user shares the file system.
            self.add(source["serviceAccountToken"]["path"], self.tokens[request].encode(), 0o600)
        else:
            self.refusals.append(
                Refusal("FailedMount", f"a projected volume cannot hold {', '.join(source)} on this node")
            )


def _token_request(source: Json) -> TokenRequest:
    return TokenRequest(
        source.get("audience", ""), int(source.get("expirationSeconds") or DEFAULT_TOKEN_SECONDS)
    )


def token_requests(pod: Json) -> frozenset[TokenRequest]:
    """Return the tokens that the projected volumes of *pod* ask for."""
    return frozenset(
        _token_request(source["serviceAccountToken"])
        for volume in pod["spec"].get("volumes") or ()
        for source in (volume.get("projected") or {}).get("sources") or ()
        if "serviceAccountToken" in source
    )


def refused_volumes(pod: Json) -> Iterator[Refusal]:
    """Say which volumes of *pod* this node cannot give."""
    for volume in pod["spec"].get("volumes") or ():
        kinds = [k for k in volume if k != "name"]
        if kinds and kinds[0] not in GIVEN:
            yield Refusal(
                "FailedMount",
                f"volume {volume['name']}: the dev cluster has no {kinds[0]} volumes; use one of {', '.join(GIVEN)}",
            )


def volume_files(
    volume: Json, facts: fields.PodFacts, objects: Objects, tokens: Tokens
) -> Tree | Refusal | None:
    """Return the files of *volume*, None for an emptyDir or a hostPath, whose content is the containers' own.

    *tokens* must hold every one of `token_requests`.
    """
    build = _Build(facts, objects, tokens)
    if "configMap" in volume:
        source = volume["configMap"]
        build.add_object("ConfigMap", source.get("name", ""), source, source.get("defaultMode", DEFAULT_MODE))
    elif "secret" in volume:
        source = volume["secret"]
        build.add_object(
            "Secret", source.get("secretName", ""), source, source.get("defaultMode", DEFAULT_MODE)
        )
    elif "downwardAPI" in volume:
        source = volume["downwardAPI"]
        build.add_downward(source.get("items") or (), source.get("defaultMode", DEFAULT_MODE))
    elif "projected" in volume:
        source = volume["projected"]
        for projection in source.get("sources") or ():
            build.add_projection(projection, source.get("defaultMode", DEFAULT_MODE))
    else:
        return None
    return build.refusals[0] if build.refusals else build.files
