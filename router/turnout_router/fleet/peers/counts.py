"""Metrics of the connections to other routers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout import metrics as catalog
from turnout_router.families import counter_family, gauge_family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

UNKNOWN_DEPLOYMENT: Final = "unknown_deployment"
UNKNOWN_REQUEST: Final = "unknown_request"


class PeerCounts:
    """Counters that only the event loop's thread changes; a collector for the registry."""

    def __init__(self) -> None:
        self.outgoing = 0
        self.incoming = 0
        self.requests = 0
        self.sent = 0
        self.received = 0
        self.ignored: dict[str, int] = {UNKNOWN_DEPLOYMENT: 0, UNKNOWN_REQUEST: 0}
        self.ended: dict[str, int] = {}

    def end(self, fault: str) -> None:
        """Count a connection that ended, or was not accepted, because of *fault*."""
        self.ended[fault] = self.ended.get(fault, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        peers = gauge_family(catalog.ROUTER_PEERS)
        peers.add_metric(["outgoing"], self.outgoing)
        peers.add_metric(["incoming"], self.incoming)
        yield peers
        requests = gauge_family(catalog.ROUTER_PEER_REQUESTS)
        requests.add_metric([], self.requests)
        yield requests
        messages = counter_family(catalog.ROUTER_PEER_MESSAGES)
        messages.add_metric(["sent"], self.sent)
        messages.add_metric(["received"], self.received)
        yield messages
        ignored = counter_family(catalog.ROUTER_PEER_MESSAGES_IGNORED)
        for reason, count in self.ignored.items():
            ignored.add_metric([reason], count)
        yield ignored
        ended = counter_family(catalog.ROUTER_PEER_CONVERSATIONS_ENDED)
        for reason, count in tuple(self.ended.items()):
            ended.add_metric([reason], count)
        yield ended
