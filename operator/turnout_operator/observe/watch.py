"""The watches, run by an embedded kopf operator that does nothing but report what it sees.

Only ``on.event`` handlers are registered: they need no finalizer and write nothing onto the objects.
What has to be done is decided elsewhere, by level; an event only says where to look.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Final

import kopf

from turnout_operator.errors import ConfigurationError
from turnout_operator.kube.kinds import SELECTORS, Kind

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    from turnout_operator.kube.client import Raw

LOG: Final = logging.getLogger(__name__)

LOGIN_RETRY_SECONDS: Final = 5.0
"""How soon credentials are read again that could not be used: a token may be in the middle of its rotation."""

Report = Callable[[Kind, str | None, dict[str, Any]], None]
"""Takes the kind, the event's type (None: from a list) and the object."""


def registry(
    report: Report, connect: Callable[[], Awaitable[kopf.ConnectionInfo]], kinds: Collection[Kind]
) -> kopf.OperatorRegistry:
    """Return kopf's handlers: one per watched kind, and the login."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**_: object) -> kopf.ConnectionInfo:
        try:
            return await connect()
        except ConfigurationError as error:
            raise kopf.TemporaryError(str(error), delay=LOGIN_RETRY_SECONDS) from error

    def handle(kind: Kind) -> None:
        async def seen(*, type: str | None, event: Any, **_: object) -> None:  # noqa: A002 - kopf's names
            raw: Raw = dict(event["object"])
            report(kind, type, raw)

        kopf.on.event(kind.group, kind.version, kind.plural, id=kind.plural, registry=handlers)(seen)

    for kind in kinds:
        handle(kind)
    return handlers


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings: quiet, selective, and with every wait bounded."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.process.ultimate_exiting_timeout = None  # one kopf of several that ends is not the process' end
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    chosen.persistence.finalizer = "turnout.dev/kopf"
    chosen.persistence.progress_storage = _NoProgress()
    chosen.persistence.diffbase_storage = _NoDiff()
    chosen.queueing.idle_timeout = 0.5
    chosen.watching.server_timeout = 300
    chosen.watching.client_timeout = 330
    chosen.watching.connect_timeout = 10
    chosen.watching.reconnect_backoff = 0.5
    chosen.watching.chunk_size = 100
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 10
    chosen.networking.error_backoffs = (0.5, 1, 2, 4)
    for kind, selector in SELECTORS.items():
        chosen.watching.label_selectors[kind.group, kind.version, kind.plural] = selector
    return chosen


class _NoProgress(kopf.ProgressStorage):
    """Nothing is kept of handlers: those of events have no progress."""

    def fetch(self, **_: Any) -> None:
        """Return nothing."""

    def store(self, **_: Any) -> None:
        """Keep nothing."""

    def purge(self, **_: Any) -> None:
        """Keep nothing."""

    def touch(self, **_: Any) -> None:
        """Write nothing."""

    def clear(self, *, essence: Any) -> Any:
        """Return what there is, which is empty."""
        return essence


class _NoDiff(kopf.DiffBaseStorage):
    """Objects are not compared with what they were: kopf's own would copy each whole object at each event."""

    def build(self, **_: Any) -> Any:
        """Return nothing of an object."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Return nothing."""

    def store(self, **_: Any) -> None:
        """Keep nothing."""


class _Everything(Collection[Any]):
    """Contains whatever it is asked for. At its end kopf cancels all tasks that it is not configured to ignore."""

    def __contains__(self, _: object) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


async def watch(
    report: Report,
    connect: Callable[[], Awaitable[kopf.ConnectionInfo]],
    *,
    namespace: str | None,
    kinds: Collection[Kind],
    stop: asyncio.Event,
    spawned: Callable[[], None],
) -> None:
    """Report everything that happens to *kinds* in *namespace* (None: everywhere) until *stop* is set.

    *spawned* is called once kopf has started, which takes the process' signals for itself. Raise what ended the watches
    otherwise, such as a refusal of the API server.
    """
    logging.getLogger("kopf").setLevel(logging.WARNING)
    tasks = await kopf.spawn_tasks(
        registry=registry(report, connect, kinds),
        settings=settings(),
        clusterwide=namespace is None,
        namespaces=() if namespace is None else (namespace,),
        stop_flag=stop,
    )
    spawned()
    await kopf.run_tasks(tasks, ignored=_Everything())
