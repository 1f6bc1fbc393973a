"""The facts of a deployment's model, from its workers' reports. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One entry of a worker's `GET /v1/models`: a name that it serves. None is what it does not say."""

    name: str
    root: str | None = None
    """What it was loaded from."""
    parent: str | None = None
    """The model that an adapter belongs to."""
    max_model_len: int | None = None
    """The most tokens that prompt and answer may have together."""
    created: int | None = None
    """Unix time."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a deployment's workers say of its model, and by name of its LoRA adapters. None: not known."""

    max_model_len: int | None = None
    """The most tokens that prompt and answer may have together, on whichever of its workers they are."""
    root: str | None = None
    created: int | None = None
    adapters: Mapping[str, ModelCard] = field(default_factory=dict)


def model_facts(
    reports: Iterable[tuple[str, Collection[ModelCard]]], adapters: Collection[str] = ()
) -> ModelFacts:
    """Return what *reports* show: the revision of each worker that answered, and its cards.

    Workers of one revision serve the same model from the same arguments. So what most of them say holds, of equally many the
    least, and one that errs changes nothing among three. Of several revisions the least context length counts: a request
    may reach any of them. *adapters* are the deployment's own; of others that a worker names nothing is kept.
    """
    lengths: dict[str, Counter[int]] = {}
    roots: Counter[str] = Counter()
    created: list[int] = []
    found: dict[str, Counter[ModelCard]] = {name: Counter() for name in adapters}
    for revision, cards in reports:
        for card in cards:
            if card.name in found:
                found[card.name][card] += 1
        base = next((card for card in cards if card.parent is None and card.name not in found), None)
        if base is None:
            continue
        if base.max_model_len is not None:
            lengths.setdefault(revision, Counter())[base.max_model_len] += 1
        if base.root is not None:
            roots[base.root] += 1
        if base.created is not None:
            created.append(base.created)
    return ModelFacts(
        max_model_len=min((_usual(each) for each in lengths.values()), default=None),
        root=min(roots, key=lambda each: (-roots[each], each), default=None),
        created=min(created, default=None),
        adapters={name: cards.most_common(1)[0][0] for name, cards in found.items() if cards},
    )


def _usual(lengths: Counter[int]) -> int:
    return min(lengths, key=lambda each: (-lengths[each], each))
