"""Events of pods, so that ``kubectl describe pod`` shows what the node did and could not do."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from turnout_devcluster.node.errors import ApiError, NotFoundError, UnreachableError

if TYPE_CHECKING:
    from turnout_devcluster.node.api import Api
    from turnout_devcluster.node.model import Json

REMEMBERED: Final = 1024
QUEUED: Final = 256
REPEAT_SECONDS: Final = 30.0
"""An event that repeats is written again at most this often, with its count."""
NOTE_LENGTH: Final = 1024
CONTROLLER: Final = "turnout.dev/node"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Series:
    """One event and its repetitions."""

    body: dict[str, Any]
    path: str
    count: int = 1
    written_at: float = 0.0
    """Monotonic seconds; 0 before it was first written."""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class EventRecorder:
    """Writes events in the background: repeated ones as a series, too many not at all."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance
        self._series: OrderedDict[tuple[str, str, str], _Series] = OrderedDict()
        self._queue: asyncio.Queue[_Series] = asyncio.Queue(QUEUED)

    def record(
        self, pod: Json, kind: Literal["Normal", "Warning"], reason: str, note: str, container: str = ""
    ) -> None:
        """Note that something happened to *pod*, or to one container of it."""
        metadata = pod["metadata"]
        note = note[:NOTE_LENGTH]
        key = (metadata["uid"], reason, f"{container} {note}")
        series = self._series.get(key)
        if series is None:
            path = f"/apis/events.k8s.io/v1/namespaces/{metadata['namespace']}/events"
            series = self._series[key] = _Series(self._body(pod, kind, reason, note, container), path)
            while len(self._series) > REMEMBERED:
                self._series.popitem(last=False)
        else:
            self._series.move_to_end(key)
            series.count += 1
            if time.monotonic() - series.written_at < REPEAT_SECONDS:
                return
        series.written_at = time.monotonic()
        try:
            self._queue.put_nowait(series)
        except asyncio.QueueFull:
            _log.warning("too many events, dropped: %s %s", reason, note)

    def _body(self, pod: Json, kind: str, reason: str, note: str, container: str) -> dict[str, Any]:
        metadata = pod["metadata"]
        regarding = {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        if container:
            regarding["fieldPath"] = f"spec.containers{{{container}}}"
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{secrets.token_hex(8)}",
                "namespace": metadata["namespace"],
            },
            "eventTime": _now(),
            "type": kind,
            "reason": reason,
            "note": note,
            "action": reason,
            "regarding": regarding,
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
        }

    async def run(self) -> None:
        """Write what is recorded, until cancelled. What the API server does not take is dropped."""
        while True:
            series = await self._queue.get()
            try:
                if series.count == 1:
                    await self._api.create(series.path, series.body)
                else:
                    repeated = {"series": {"count": series.count, "lastObservedTime": _now()}}
                    await self._api.patch(f"{series.path}/{series.body['metadata']['name']}", repeated)
            except NotFoundError:
                continue  # the namespace, or the event itself, is gone
            except (ApiError, UnreachableError) as error:
                _log.warning("event %s dropped: %s", series.body["reason"], error)
