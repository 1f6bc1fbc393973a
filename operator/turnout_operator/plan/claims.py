"""Which resource has a name (or an API key) that several claim, in whatever namespaces: the one that has it now.

A name is assigned once for everything that the operator sees, and stays assigned: neither an older resource that
begins to claim it, nor a clock, nor a restart of the operator moves it. A holder gives a name up by leaving it out of
its spec, and then the next claim gets it at once. A holder that is deleted may come back: for `HOLD_SECONDS` no resource
of another namespace gets what it had, so that a waiting claim does not take over its traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HOLD_SECONDS: Final = 60.0
"""How long a name is kept for the namespace of a holder that was deleted: long enough to replace a resource or to
install a release anew. To hand a name to another namespace without that wait, leave it out of the holder's spec first.
"""
_KINDS: Final = {"LLMDeployment": "", "LLMRoute": "route ", "TokenBudget": "TokenBudget "}
"""Kinds that claim, in the order in which equally old ones come first, and what people read before their names."""
_ORDER: Final = tuple(_KINDS)


class Claimant(NamedTuple):
    """A resource that claims names."""

    kind: str
    namespace: str
    name: str

    def seen_from(self, namespace: str) -> str:
        """Return how it is named in messages to users of *namespace*."""
        where = "" if namespace == self.namespace else f"{self.namespace}/"
        return f"{_KINDS[self.kind]}{where}{self.name}"


@dataclass(frozen=True, slots=True)
class Claim:
    """The names that one resource wants."""

    owner: Claimant
    created: str
    """``creationTimestamp``, RFC 3339: its text sorts by time."""
    names: tuple[str, ...]
    had: frozenset[str] = frozenset()
    """Those that its status says are its own."""
    refused: frozenset[str] = frozenset()
    """Those that its status says it did not get."""


@dataclass(frozen=True, slots=True)
class NameAssignment:
    """What a resource gets of the names it claims."""

    served: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    """Name, and why not: ``served by NAME``."""


class Claims:
    """All claims, and the holder of each name. Times are of one monotonic clock, in seconds.

    Claims that were put in take effect with the next `assign`, which looks only at names whose claims have changed.
    """

    def __init__(self) -> None:
        self._claims: dict[Claimant, Claim] = {}
        self._rivals: dict[str, set[Claimant]] = {}
        self._holders: dict[str, Claimant] = {}
        self._kept: dict[str, tuple[str | None, float]] = {}
        """Names without a holder: the namespace that they are kept for (None: an unknown one), and the end of that time."""
        self._open: set[str] = set()

    def put(self, claim: Claim) -> None:
        """Take in a claim that is new or has changed."""
        before = self._claims.get(claim.owner)
        was, wanted = set(before.names if before is not None else ()), set(claim.names)
        self._claims[claim.owner] = claim
        for name in was - wanted:
            self._leave(name, claim.owner)
        for name in wanted - was:
            self._rivals.setdefault(name, set()).add(claim.owner)
            self._open.add(name)

    def remove(self, owner: Claimant, now: float) -> None:
        """Take in that a resource is gone."""
        claim = self._claims.pop(owner, None)
        for name in set(claim.names) if claim is not None else ():
            if self._holders.get(name) == owner:
                del self._holders[name]
                self._kept[name] = owner.namespace, now + HOLD_SECONDS
            self._leave(name, owner)

    def owners(self) -> tuple[Claimant, ...]:
        """Return all that claim something."""
        return tuple(self._claims)

    def assign(self, now: float) -> set[Claimant]:
        """Give what can be given; return the claimants that this concerns."""
        self._open.update(name for name, (_, until) in self._kept.items() if now >= until)
        concerned: set[Claimant] = set()
        for name in self._open:
            before = self._holders.get(name)
            rivals = self._rivals.get(name, set())
            if before not in rivals:
                self._give(name, rivals, now)
            if self._holders.get(name) != before or name in self._kept:
                concerned |= rivals
        self._open.clear()
        return concerned

    def assignment(self, owner: Claimant) -> NameAssignment:
        """Return what *owner* gets, as of the last `assign`."""
        claim = self._claims.get(owner)
        served, refused = [], []
        for name in dict.fromkeys(claim.names) if claim is not None else ():
            holder = self._holders.get(name)
            if holder == owner:
                served.append(name)
            elif holder is not None:
                refused.append((name, f"served by {holder.seen_from(owner.namespace)}"))
            else:
                namespace = self._kept.get(name, (None, 0.0))[0]
                before = "what had it" if namespace is None else f"namespace {namespace}"
                refused.append(
                    (name, f"kept for {before} for {HOLD_SECONDS:.0f} s after its holder has gone")
                )
        return NameAssignment(tuple(served), tuple(refused))

    def _leave(self, name: str, owner: Claimant) -> None:
        rivals = self._rivals[name]
        rivals.discard(owner)
        if not rivals:
            del self._rivals[name]
        self._open.add(name)

    def _give(self, name: str, rivals: set[Claimant], now: float) -> None:
        known = self._holders.pop(name, None) is not None
        kept = self._kept.get(name)
        if kept is not None and now >= kept[1]:
            del self._kept[name]
            kept, known = None, True
        if not known and kept is None and rivals and all(name in self._claims[r].refused for r in rivals):
            # A resource that this operator has not seen had it: deleted while none ran, or not readable at present.
            kept = self._kept[name] = None, now + HOLD_SECONDS
        among = rivals if kept is None else {rival for rival in rivals if rival.namespace == kept[0]}
        if among:
            self._kept.pop(name, None)
            self._holders[name] = min(among, key=lambda rival: self._rank(name, rival))

    def _rank(self, name: str, rival: Claimant) -> tuple[bool, str, int, Claimant]:
        claim = self._claims[rival]
        return name not in claim.had, claim.created, _ORDER.index(rival.kind), rival


def assign_names(claims: Iterable[Claim]) -> dict[Claimant, NameAssignment]:
    """Assign the names of *claims* at once, as an operator does at its start."""
    book = Claims()
    for claim in claims:
        book.put(claim)
    book.assign(0.0)
    return {owner: book.assignment(owner) for owner in book.owners()}


def claimant_of(raw: Mapping[str, Any]) -> Claimant:
    """Return a raw resource as a claimant."""
    meta = raw["metadata"]
    return Claimant(raw["kind"], meta.get("namespace", ""), meta["name"])


def claim_of(raw: Mapping[str, Any]) -> Claim:
    """Read the claim of a resource, also of one whose spec cannot be used: what it serves stays its own."""
    names = _claimed(raw)
    observed = _field(raw.get("status"), "observedGeneration")
    settled = bool(observed) and observed == raw["metadata"].get("generation")
    had = frozenset(_had(raw, settled=settled)) & frozenset(names)
    refused = frozenset(names) - had if settled else frozenset[str]()
    return Claim(claimant_of(raw), raw["metadata"].get("creationTimestamp") or "", names, had, refused)


def keys_of(raw: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a TokenBudget's keys, by the names of the keys."""
    keys = _field(raw.get("spec"), "keys")
    found = [(_field(key, "name"), _field(key, "sha256")) for key in keys] if isinstance(keys, list) else []
    return {name: digest for name, digest in found if isinstance(name, str) and isinstance(digest, str)}


def _claimed(raw: Mapping[str, Any]) -> tuple[str, ...]:
    spec = raw.get("spec")
    if raw["kind"] == "TokenBudget":
        return tuple(keys_of(raw).values())
    if raw["kind"] == "LLMRoute":
        return _names(_field(spec, "names"))
    served = _names(_field(_field(spec, "model"), "servedNames")) or (raw["metadata"]["name"],)
    adapters = _field(_field(spec, "lora"), "adapters")
    lora = [_field(adapter, "name") for adapter in adapters] if isinstance(adapters, list) else []
    return (*served, *_names(lora))


def _had(raw: Mapping[str, Any], *, settled: bool) -> tuple[str, ...]:
    """Return what the status of a resource says that it has. That of a budget names keys, whose digests may have changed."""
    status = raw.get("status")
    if raw["kind"] != "TokenBudget":
        return _names(_field(status, "servedNames"))
    accepted = _names(_field(status, "acceptedKeys")) if settled else ()
    return tuple(digest for name, digest in keys_of(raw).items() if name in accepted)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _names(values: Any) -> tuple[str, ...]:
    return tuple(name for name in values if isinstance(name, str)) if isinstance(values, list) else ()
