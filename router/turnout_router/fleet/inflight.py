"""A request in flight on one worker: its part of the worker's load, and what the prefix-aware policy learns of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from turnout.routing.load_tracker import InFlightRequest, LoadTracker
    from turnout.routing.policy import PairEstimate
    from turnout_router.fleet.clock import DeploymentClock
    from turnout_router.fleet.dispatch import DispatchQueue
    from turnout_router.fleet.peers.sender import PeerSender


class WorkerLoad:
    """What one worker has in flight from this router: expected tokens, requests, and when it was last picked."""

    __slots__ = ("last_pick", "requests", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.requests = 0
        self.last_pick = 0


@mypyc_attr(free_list_len=1)
class InFlightClaim:
    """Counts *tokens* and one request in *load*, and in the policy's tracker where a prefix-aware policy chose the worker.

    `end` takes both back. A worker cannot refuse it: whether the worker has room is for the engine, or for the dispatch queue.
    """

    __slots__ = (
        "_cached_tokens",
        "_clock",
        "_dispatch",
        "_load",
        "_number",
        "_prompt_tokens",
        "_request",
        "_sender",
        "_tokens",
        "_tracker",
        "_wait",
    )

    def __init__(  # noqa: PLR0917 - made once for every request
        self,
        load: WorkerLoad,
        tokens: int,
        estimate: PairEstimate | None,
        backend_id: str,
        clock: DeploymentClock,
        dispatch: DispatchQueue | None,
    ) -> None:
        load.tokens += tokens
        load.requests += 1
        self._load = load
        self._tokens = tokens
        self._clock = clock
        self._dispatch = dispatch
        self._tracker: LoadTracker | None = None
        self._request: InFlightRequest | None = None
        self._cached_tokens: int | None = None
        self._prompt_tokens = 0
        self._wait = 0.0
        self._sender: PeerSender | None = None
        self._number = 0
        if estimate is not None:
            own = estimate.decode
            if estimate.prefill is not None and estimate.prefill.state.id == backend_id:
                own = estimate.prefill
            self._tracker = estimate.policy.tracker
            self._request = estimate.policy.sent(own, estimate.prompt, clock.now())
            self._wait = own.wait

    def publish(self, sender: PeerSender, deployment: str, estimate: PairEstimate) -> None:
        """Report it to other routers, too, from its beginning to its end."""
        if self._request is not None:
            self._sender = sender
            self._number = sender.sent(deployment, self._request, estimate.prompt)

    def first_token(self) -> None:
        """Note that the prompt has been computed; a second time means nothing."""
        if self._tracker is not None and self._request is not None:
            if self._sender is not None and self._request.running_since is None:
                self._sender.first_token(self._number)
            self._tracker.first_token(self._request, self._clock.now())
            if self._dispatch is not None:
                self._dispatch.advance()

    def expect_first_token(self) -> None:
        """Take the first token to come when it is expected: an answer in one piece does not show it."""
        if self._request is not None:
            self._request.expected_at = self._clock.now() + self._wait
            if self._sender is not None:
                self._sender.expected(self._number, self._wait)

    def found(self, cached_tokens: int | None, prompt_tokens: int) -> None:
        """Keep the cached tokens that the answer's usage reports."""
        self._cached_tokens, self._prompt_tokens = cached_tokens, prompt_tokens

    def end(self) -> None:
        """Note the request's end on this worker, whatever its kind. To be called once."""
        self._load.tokens -= self._tokens
        self._load.requests -= 1
        if self._tracker is not None and self._request is not None:
            self._tracker.finished(self._request, self._clock.now(), self._cached_tokens, self._prompt_tokens)
            if self._sender is not None:
                self._sender.finished(self._number, self._cached_tokens, self._prompt_tokens)
            if self._dispatch is not None:
                self._dispatch.advance()
