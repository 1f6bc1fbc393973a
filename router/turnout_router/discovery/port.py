"""The port between the router and whatever knows the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from turnout.routing import Fleet


class FleetObserver(Protocol):
    """Is told what a source sees. Called on the event loop's thread."""

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
    """Something that knows the fleet."""

    async def run(self, observer: FleetObserver) -> None:
        """Tell *observer* of the fleet and of every change until cancelled.

        Raise ConfigError where it cannot even begin because it was configured wrongly. Everything that passes (an
        API server away, a file half written) is waited out.
        """

    def reload(self) -> None:
        """Look again now (SIGHUP), where that means something."""
