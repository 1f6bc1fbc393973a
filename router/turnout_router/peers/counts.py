"""What is counted of the conversation with other routers, in Prometheus' form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

UNKNOWN_DEPLOYMENT: Final = "unknown_deployment"
UNBOOKED: Final = "unbooked"


class PeerCounts:
    """Numbers of the event loop's thread; a collector for the registry."""

    def __init__(self) -> None:
        self.telling = 0
        self.hearing = 0
        self.requests = 0
        self.sent = 0
        self.received = 0
        self.ignored: dict[str, int] = {UNKNOWN_DEPLOYMENT: 0, UNBOOKED: 0}
        self.ended: dict[str, int] = {}

    def end(self, fault: str) -> None:
        """Count a conversation that ended, or did not begin, for *fault*."""
        self.ended[fault] = self.ended.get(fault, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Return all that is counted."""
        peers = GaugeMetricFamily(
            "turnout_router_peers",
            "Other routers: those that are told of this one's requests, those that tell of theirs.",
            labels=("direction",),
        )
        peers.add_metric(["told"], self.telling)
        peers.add_metric(["heard"], self.hearing)
        yield peers
        yield GaugeMetricFamily(
            "turnout_router_peer_requests", "Halves of requests that others have in flight.", self.requests
        )
        messages = CounterMetricFamily(
            "turnout_router_peer_messages",
            "Messages about requests, each counted once however many are told.",
            labels=("direction",),
        )
        messages.add_metric(["sent"], self.sent)
        messages.add_metric(["received"], self.received)
        yield messages
        ignored = CounterMetricFamily(
            "turnout_router_peer_messages_ignored",
            "Messages that changed nothing here: of a deployment that this router does not have, or of a worker or "
            "request that it does not know.",
            labels=("reason",),
        )
        for reason, count in self.ignored.items():
            ignored.add_metric([reason], count)
        yield ignored
        ended = CounterMetricFamily(
            "turnout_router_peer_conversations_ended",
            "Conversations with other routers that ended or did not begin, by why.",
            labels=("reason",),
        )
        for reason, count in tuple(self.ended.items()):
            ended.add_metric([reason], count)
        yield ended
