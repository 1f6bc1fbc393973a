"""The health of one deployment's workers, and which of them may be used now. Decided in `turnout.routing.health`."""

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

_MAX_PROVISIONAL: Final = 8
"""Provisional failures of one worker at a time. With more, the worker is at fault and not its requests."""


class WorkerHealth:
    """Failures, ejections and trials of a deployment's workers. Healthy workers take no memory."""

    __slots__ = ("_clock", "_policy", "_provisional", "_states")

    def __init__(self, policy: HealthPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._states: dict[str, Health] = {}
        self._provisional: dict[str, int] = {}

    def retain(self, present: Container[str]) -> None:
        """Forget the workers that are not *present*."""
        self._states = {id_: state for id_, state in self._states.items() if id_ in present}

    @property
    def all_healthy(self) -> bool:
        """Whether no worker has failed lately."""
        return not self._states

    def of(self, backend: Backend) -> Health:
        """Return what is known of *backend*."""
        return self._states.get(backend.id, HEALTHY)

    def usable(self, backends: Sequence[Backend]) -> Sequence[Backend]:
        """Return those of *backends* that may be used now."""
        return usable(backends, self._states, self._clock()) if self._states else backends

    def is_ejected(self, backend: Backend) -> bool:
        """Return whether *backend* is ejected and has not come back yet."""
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
        """Note a failure of *backend*, if it is one of its health."""
        if error.is_ill:
            self._states[backend.id] = after_failure(self.of(backend), self._clock(), self._policy)

    def note_provisional(self, backend: Backend) -> bool:
        """Note a failure of *backend* that the request may have caused; undone by `clear_provisional`.

        Return False if it must count at once, see `failed`: the worker has just failed other requests, or has too many
        provisional failures.
        """
        provisional = self._provisional.get(backend.id, 0)
        if provisional >= _MAX_PROVISIONAL or backend.id in self._states:
            return False
        self._provisional[backend.id] = provisional + 1
        return True

    def clear_provisional(self, backend: Backend) -> None:
        """Remove a provisional failure: it has become a failure, or the request was at fault."""
        left = self._provisional.pop(backend.id, 0) - 1
        if left > 0:
            self._provisional[backend.id] = left

    def patience(self, backend: Backend, seconds: float) -> float:
        """Return how many seconds a request that was just sent to *backend* may wait for it, *seconds* at most."""
        return min(seconds, self._policy.probe_seconds) if self.on_trial(backend) else seconds

    def on_trial(self, backend: Backend) -> bool:
        """Return whether the request sent to *backend* probes its recovery."""
        return bool(self._states) and on_trial(self.of(backend))

    def checked(self, backend: Backend, *, answered: bool) -> None:
        """Note whether *backend* answered a health check."""
        if backend.id in self._states:
            self._states[backend.id] = after_check(self._states[backend.id], self._clock(), answered=answered)

    def begin_trial(self, backend: Backend) -> bool:
        """Return whether the router should try *backend* now; if so, a trial is under way from now on."""
        now, health = self._clock(), self.of(backend)
        if not needs_trial(health, now):
            return False
        self._states[backend.id] = on_pick(health, now, self._policy)
        return True

    def passed_trial(self, backend: Backend) -> None:
        """Note that *backend* has served the router's own request: a client's request may probe it next."""
        if backend.id in self._states:
            self._states[backend.id] = after_trial(self._states[backend.id])
