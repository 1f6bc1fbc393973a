"""Names and keys, assigned over all namespaces that are watched, and kept up to date with the store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from turnout_operator.kube.kinds import CLAIMING, TOKEN_BUDGET, Kind
from turnout_operator.observe.store import Key
from turnout_operator.plan.claims import Claimant, Claims, NameAssignment, claim_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_operator.observe.store import Store


class NameClaims:
    """Which resource has which name or key. *clock* is monotonic, in seconds."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._names = Claims()
        self._keys = Claims()

    def look_at(self, kind: Kind, key: Key) -> None:
        """Take in what the store knows now of a resource that claims something."""
        claims = self._claims(kind)
        raw = self._store.get(kind, key)
        if raw is None or raw["metadata"].get("deletionTimestamp"):
            claims.remove(Claimant(kind.name, *key), self._clock())
        else:
            claims.put(claim_of(raw))

    def look_at_all(self) -> None:
        """Take in everything, also that something is gone."""
        for kind in CLAIMING:
            known = {
                Key(one.namespace, one.name) for one in self._claims(kind).owners() if one.kind == kind.name
            }
            for key in known.union(self._store.keys(kind)):
                self.look_at(kind, key)

    def assign(self) -> set[tuple[Kind, Key]]:
        """Assign what is open; return the resources whose names or keys have changed."""
        now = self._clock()
        kinds = {kind.name: kind for kind in CLAIMING}
        return {
            (kinds[one.kind], Key(one.namespace, one.name))
            for claims in (self._names, self._keys)
            for one in claims.assign(now)
        }

    def assignment(self, kind: Kind, key: Key) -> NameAssignment:
        """Return what a resource has."""
        return self._claims(kind).assignment(Claimant(kind.name, *key))

    def _claims(self, kind: Kind) -> Claims:
        return self._keys if kind == TOKEN_BUDGET else self._names
