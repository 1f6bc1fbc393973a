"""Ejection of a backend after failures, and its recovery.

States of one backend::

    healthy --failures in a row reach the threshold--> ejected for a growing time
    ejected --time over--> on trial: the router has it compute one token of its own
    on trial --answer--> half open          on trial --failure--> ejected, for twice as long
    half open: one client's request at a time probes it
    half open --success--> healthy          half open --failure--> ejected, for twice as long

So no client waits for a backend that hangs. An ejected backend also gets a health check now and then: as
long as it does not answer, no trial is made, and when it answers again, its ejection is over at once.

Ejection is a state of this router, and follows from requests only: a pod that is not ready is not a backend at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from turnout.routing.fleet import Backend


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When to eject and for how long.

    `failures` in a row eject a backend, for `first_seconds` the first time and twice as long each further time
    without a success between, at most `longest_seconds`: below 5, so that a repaired backend never waits longer.
    What tries whether a backend has recovered, the router's own request or a client's, has `probe_seconds` to show it;
    then another one may try.
    """

    failures: int = 3
    first_seconds: float = 1.0
    longest_seconds: float = 4.0
    probe_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one backend: failures in a row, ejections since the last success, times on the caller's clock.

    `down`: since it was ejected it did not answer a health check. `tried`: since its time was over it
    has served the router's own request.
    """

    failures: int = 0
    ejections: int = 0
    ejected_until: float | None = None
    probing_until: float | None = None
    down: bool = False
    tried: bool = False

    @property
    def ejected(self) -> bool:
        """Whether it has been ejected and has not yet come back."""
        return self.ejected_until is not None


HEALTHY: Final = Health()


def after_success(_health: Health) -> Health:
    """Return the state after an answer: one success is enough to trust a backend again."""
    return HEALTHY


def after_failure(health: Health, now: float, policy: HealthPolicy) -> Health:
    """Return the state after a failure that was the backend's own (connection, time-out, 5xx).

    Failures of requests that were under way when it was ejected do not prolong the ejection.
    """
    if health.ejected_until is not None and now < health.ejected_until:
        return health
    failures = health.failures + 1
    if health.ejected_until is None and failures < policy.failures:
        return replace(health, failures=failures)
    duration = min(policy.first_seconds * 2.0 ** min(health.ejections, 32), policy.longest_seconds)
    return Health(failures=failures, ejections=health.ejections + 1, ejected_until=now + duration)


def after_check(health: Health, now: float, *, answered: bool) -> Health:
    """Return the state after a health check of the backend.

    One that answers now and did not before has been repaired: its ejection is over. One that has answered all along
    fails requests for another reason, and waits for its time to be over.
    """
    if health.ejected_until is None:
        return health
    if not answered:
        return replace(health, down=True)
    if health.down:
        return replace(health, down=False, ejected_until=min(now, health.ejected_until), probing_until=None)
    return health


def needs_trial(health: Health, now: float) -> bool:
    """Return whether the router has to try the backend before any client's request is sent there."""
    if health.ejected_until is None or health.down or health.tried or now < health.ejected_until:
        return False
    return health.probing_until is None or now >= health.probing_until


def after_trial(health: Health) -> Health:
    """Return the state after the backend has served the router's own request; see `after_failure` for a failed trial."""
    return health if health.ejected_until is None else replace(health, tried=True, probing_until=None)


def on_trial(health: Health) -> bool:
    """Return whether a request tries whether the backend has recovered: it must not wait for it as for a healthy one."""
    return health.ejected_until is not None and health.probing_until is not None


def may_use(health: Health, now: float) -> bool:
    """Return whether a client's request may be sent now: healthy, or half open with no probe under way."""
    if health.ejected_until is None:
        return True
    if health.down or not health.tried or now < health.ejected_until:
        return False
    return health.probing_until is None or now >= health.probing_until


def on_pick(health: Health, now: float, policy: HealthPolicy) -> Health:
    """Return the state once a request is on its way: the first one to a backend whose time is over is its probe."""
    if health.ejected_until is None or health.down or now < health.ejected_until:
        return health
    return replace(health, probing_until=now + policy.probe_seconds)


def usable(backends: Sequence[Backend], states: Mapping[str, Health], now: float) -> Sequence[Backend]:
    """Return the backends that may be used now. *states* holds those that are not plainly healthy.

    Never leaves a prompt without a worker that decodes: where all of them are ejected, all are used, for then the fault is
    likelier to lie elsewhere, and trying costs less than refusing everything. Prefill workers that are ejected are not used
    at all: a decode worker can do their work at once, where a client would wait for one that hangs. They come back by
    the router's own trials.
    """
    if not states:
        return backends
    good = [b for b in backends if may_use(states.get(b.id, HEALTHY), now)]
    if len(good) == len(backends) or any(b.role != "prefill" for b in good):
        return good
    good_ids = {b.id for b in good}
    return [b for b in backends if b.id in good_ids or b.role != "prefill"]
