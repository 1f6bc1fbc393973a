"""The port between the router and the sources of its fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from turnout.routing import Fleet
    from turnout_runtime.supervision import Supervisor


class FleetObserver(Protocol):
    """Receives the fleet and its changes. Called on the event loop's thread."""

    def changed(self, fleet: Fleet) -> None:
        """Take over a new fleet; the first call makes the router ready."""

    def stale(self, reason: str) -> None:
        """Learn that the source cannot be read now; the last fleet stays in use. Empty *reason*: it can again."""

    def unreadable(self, namespace: str, resource: str, reason: str) -> None:
        """Learn that the source is refused *resource* (a plural) in *namespace*, or that it is no longer: no *reason*.

        An empty *namespace* means all of them at once.
        """

    def rejected(self, what: str) -> None:
        """Learn that something was left out because it is invalid."""


class FleetSource(Protocol):
    """A source of the fleet."""

    async def run(self, observer: FleetObserver, supervisor: Supervisor) -> None:
        """Pass *observer* the fleet and every change until cancelled; further tasks are run by *supervisor*.

        Raise ConfigError where it cannot even begin because it was configured wrongly, and only before *observer* has
        got a fleet. Everything that passes (an API server away, an incomplete file) is waited out. Where anything
        else is raised, the caller runs this again.
        """

    def reload(self) -> None:
        """Look again now (SIGHUP), where that means something."""
