"""How the workers of one deployment have fared, and which of them may be used now. Decided in `turnout.routing.health`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout.routing import (
    HEALTHY,
    Health,
    after_check,
    after_failure,
    after_success,
    after_trial,
    needs_trial,
    on_pick,
    on_trial,
    usable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from turnout.routing import Backend, HealthPolicy
    from turnout_router.errors import UpstreamError

_MOST_SUSPICIONS: Final = 8
"""Requests at a time for which a worker's 5xx may be the request's own fault. With more, it is the worker's."""


class WorkerHealth:
    """Failures, ejections and trials of a deployment's workers. Only workers that are not plainly healthy take memory."""

    __slots__ = ("_clock", "_policy", "_states", "_suspicions")

    def __init__(self, policy: HealthPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._states: dict[str, Health] = {}
        self._suspicions: dict[str, int] = {}

    def retain(self, present: Container[str]) -> None:
        """Forget the workers that are not *present*."""
        self._states = {id_: state for id_, state in self._states.items() if id_ in present}

    @property
    def all_healthy(self) -> bool:
        """Whether nothing speaks against any worker."""
        return not self._states

    def of(self, backend: Backend) -> Health:
        """Return what is known of *backend*."""
        return self._states.get(backend.id, HEALTHY)

    def usable(self, backends: Sequence[Backend]) -> Sequence[Backend]:
        """Return those of *backends* that may be used now."""
        return usable(backends, self._states, self._clock()) if self._states else backends

    def is_ejected(self, backend: Backend) -> bool:
        """Say whether *backend* is ejected and has not come back yet."""
        return bool(self._states) and self._states.get(backend.id, HEALTHY).ejected

    def picked(self, backend: Backend) -> None:
        """Note that a request is on its way to *backend*."""
        if backend.id in self._states:
            self._states[backend.id] = on_pick(self._states[backend.id], self._clock(), self._policy)

    def succeeded(self, backend: Backend) -> None:
        """Note an answer of *backend*."""
        if backend.id in self._states:
            state = after_success(self._states[backend.id])
            if state == HEALTHY:
                del self._states[backend.id]

    def failed(self, backend: Backend, error: UpstreamError) -> None:
        """Note a failure of *backend*, where it speaks against its health."""
        if error.is_ill:
            self._states[backend.id] = after_failure(self.of(backend), self._clock(), self._policy)

    def suspect(self, backend: Backend) -> bool:
        """Note that *backend* answered a request with 5xx, which may be the request's fault; see `cleared`.

        Return False where the worker is to be blamed as `failed` does: it has failed other requests just now, or too many
        suspect it.
        """
        suspicions = self._suspicions.get(backend.id, 0)
        if suspicions >= _MOST_SUSPICIONS or backend.id in self._states:
            return False
        self._suspicions[backend.id] = suspicions + 1
        return True

    def cleared(self, backend: Backend) -> None:
        """Take a suspicion back: it has become a failure, or the request was at fault."""
        left = self._suspicions.pop(backend.id, 0) - 1
        if left > 0:
            self._suspicions[backend.id] = left

    def patience(self, backend: Backend, seconds: float) -> float:
        """Return how long a request that was just sent to *backend* may wait for it, *seconds* at most."""
        return min(seconds, self._policy.probe_seconds) if self.on_trial(backend) else seconds

    def on_trial(self, backend: Backend) -> bool:
        """Say whether the request sent to *backend* tries whether it has recovered."""
        return bool(self._states) and on_trial(self.of(backend))

    def checked(self, backend: Backend, *, answered: bool) -> None:
        """Note whether *backend* answered a request for its health."""
        if backend.id in self._states:
            self._states[backend.id] = after_check(self._states[backend.id], self._clock(), answered=answered)

    def begin_trial(self, backend: Backend) -> bool:
        """Say whether the router shall try *backend* now; if so, a trial is under way from now on."""
        now, health = self._clock(), self.of(backend)
        if not needs_trial(health, now):
            return False
        self._states[backend.id] = on_pick(health, now, self._policy)
        return True

    def passed_trial(self, backend: Backend) -> None:
        """Note that *backend* has computed what the router asked of it: a client's request may try it next."""
        if backend.id in self._states:
            self._states[backend.id] = after_trial(self._states[backend.id])
