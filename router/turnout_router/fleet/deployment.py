"""The router's state of one deployment: its workers with load, health and adapters, its claims, clock and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from turnout.engines import PROFILES, EngineProfile
from turnout.routing import (
    RetryBudget,
    WorkerPair,
    after_request,
    after_retry,
    may_retry,
)
from turnout.routing.by_load import LoadChooser
from turnout.routing.by_prefix import PrefixChooser
from turnout.routing.load_tracker import LoadTracker, Prompt
from turnout.routing.policy import PrefixAware
from turnout.routing.work import WorkModel
from turnout_router.api.prefixes import BLOCK_TOKENS, prompt_blocks
from turnout_router.fleet.admission import AdmissionQueue
from turnout_router.fleet.clock import DeploymentClock
from turnout_router.fleet.dispatch import DispatchQueue
from turnout_router.fleet.inflight import InFlightClaim, WorkerLoad
from turnout_router.fleet.scrapes.adapters import LoadedAdapters, blocks_under
from turnout_router.fleet.worker_health import WorkerHealth
from turnout_router.metrics import WaitingTime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.routing import Backend, DeploymentRoute, HealthPolicy
    from turnout.routing.admission import AdmissionLimits
    from turnout.routing.candidates import Constraints
    from turnout.routing.load_tracker import BackendState, Scrape
    from turnout.routing.pair import Chooser
    from turnout_router.api.openai import Completion
    from turnout_router.fleet.claims import Claim
    from turnout_router.fleet.kvevents import ExactMode
    from turnout_router.fleet.learning import Facts
    from turnout_router.fleet.peers.sender import PeerSender
    from turnout_router.metrics import DeploymentMetrics
    from turnout_router.upstream.pools import ConnectionPools

ASSUMED_KV_TOKENS: Final = 400_000
"""KV cache of a worker whose size is not known: about an 8B model on one accelerator of 80 GB. Usage with cached
tokens corrects it."""
_FULL: Final = RetryBudget()


class RouterParts:
    """What all deployments of a router share.

    `sender` reports requests to other routers, None where there are none. `exact` follows workers that publish KV events,
    None as long as none does. `facts` are what workers report of their models.
    """

    __slots__ = ("admission", "clock", "exact", "facts", "health_policy", "pools", "sender")

    def __init__(
        self,
        pools: ConnectionPools,
        health_policy: HealthPolicy,
        clock: Callable[[], float],
        admission: AdmissionLimits,
        facts: Facts,
    ) -> None:
        self.pools: Final = pools
        self.health_policy: Final = health_policy
        self.clock: Final = clock
        self.admission: Final = admission
        self.facts: Final = facts
        self.sender: PeerSender | None = None
        self.exact: ExactMode | None = None


class DeploymentRuntime:
    """One deployment in use. A request that has begun keeps the one it began with, also where the deployment is deleted.

    `claims` are acquired before a request is served, `dispatch` (None without `queueing: Router`) before each attempt.
    """

    __slots__ = (
        "_adapters",
        "_chooser",
        "_loads",
        "_parts",
        "_picks",
        "_retry_budget",
        "admission",
        "backends",
        "claims",
        "clock",
        "dispatch",
        "health",
        "key",
        "metrics",
        "policy",
        "profile",
        "route",
    )

    def __init__(self, route: DeploymentRoute, parts: RouterParts, metrics: DeploymentMetrics) -> None:
        self.key: Final = route.key
        self.route = route
        self.backends: Sequence[Backend] = ()
        self.clock: Final = DeploymentClock(parts.clock)
        self.metrics: Final = metrics
        self.admission: Final = AdmissionQueue(parts.admission)
        self.claims: Final[tuple[Claim, ...]] = (self.admission,)
        self.dispatch: DispatchQueue | None = None
        self.health: Final = WorkerHealth(parts.health_policy, parts.clock)
        self.policy: PrefixAware | None = None
        self.profile: EngineProfile = PROFILES[route.engine]
        self._parts = parts
        self._loads: dict[str, WorkerLoad] = {}
        self._picks = 0
        self._adapters: dict[str, LoadedAdapters] = {}
        self._retry_budget = _FULL
        """Of this deployment alone: one whose workers fail does not use up what repairs another one's failures."""
        self._chooser: Chooser = LoadChooser(self._loads, route.local_prefill_below_tokens)

    def update(self, route: DeploymentRoute, backends: Sequence[Backend]) -> None:
        """Use *route* and *backends* from now on. What runs on workers that left goes on; what is known of them is forgotten."""
        self.route, self.backends = route, backends
        present = {b.id for b in backends}
        self.clock.scale = route.time_scale
        self.health.retain(present)
        for id_ in [id_ for id_, load in self._loads.items() if id_ not in present and not load.requests]:
            del self._loads[id_]
        self._adapters = {id_: loaded for id_, loaded in self._adapters.items() if id_ in present}
        decoders = sum(b.role != "prefill" for b in backends)
        self.admission.resize(decoders, route.admission.over(self._parts.admission))
        self.profile = PROFILES[route.engine]
        locally = self.profile.decode_computes_prompts
        below = route.local_prefill_below_tokens if locally else 0
        if route.policy == "PrefixAware":
            if self.policy is None:
                self.policy = PrefixAware(LoadTracker(BLOCK_TOKENS), WorkModel())
            self.policy.tracker.set_backends((b.id, b.kv_tokens or ASSUMED_KV_TOKENS) for b in backends)
            self._chooser = PrefixChooser(self.policy, below, may_compute_locally=locally)
        else:
            self.policy = None
            self._chooser = LoadChooser(self._loads, below)
        self._update_dispatch()

    def _update_dispatch(self) -> None:
        policy, queue = self.policy, self.dispatch
        if policy is None or self.route.queueing != "Router":
            self.dispatch = None
            if queue is not None:
                queue.dissolve()
        elif queue is not None:
            queue.advance()
        else:
            counts = {phase: WaitingTime(self.clock.now) for phase in ("prefill", "decode")}
            self.metrics.held = counts
            self.dispatch = DispatchQueue(
                policy, counts, self.clock, self._parts.clock, lambda: self.admission.wait_seconds
            )

    def close(self) -> None:
        """Let go of a deployment that is gone. Requests that wait go on, to be refused because it has no worker."""
        self.backends = ()
        self.admission.resize(0, self._parts.admission)
        queue, self.dispatch = self.dispatch, None
        if queue is not None:
            queue.dissolve()

    @property
    def pools(self) -> ConnectionPools:
        """The connections to workers."""
        return self._parts.pools

    @property
    def exact(self) -> ExactMode | None:
        """What knows the workers' caches by their events, None where no prompt of this deployment can be compared."""
        exact = self._parts.exact
        return exact if exact is not None and exact.compares(self.key) else None

    @property
    def context_tokens(self) -> int | None:
        """How many tokens prompt and answer may have together, as the workers report; None if they have not yet."""
        facts = self._parts.facts.of(self.key)
        return None if facts is None else facts.max_model_len

    def pay_retry_budget(self) -> None:
        """Pay a request into the retry budget."""
        self._retry_budget = after_request(self._retry_budget)

    def take_retry(self, *, overloaded: bool = False) -> bool:
        """Take one retry out of the budget; return False if there is none. *overloaded*: a worker is full, none has failed."""
        if not may_retry(self._retry_budget, overloaded=overloaded):
            return False
        self._retry_budget = after_retry(self._retry_budget)
        return True

    def prompt_of(self, request: Completion) -> Prompt:
        """Return what a choice needs to know of *request*; its prefix only where there is a choice by it."""
        blocks: tuple[int, ...] = ()
        if self.policy is not None and len(self.backends) > 1:
            blocks = prompt_blocks(request.body, request.prompt)
        tokens = max(1, request.prompt_tokens, len(blocks) * BLOCK_TOKENS)
        adapters = self.route.adapters
        if adapters and request.model in adapters:
            adapter = request.model
            return Prompt(tokens, blocks_under(adapter, blocks), request.expected_output_tokens, adapter)
        return Prompt(tokens, blocks, request.expected_output_tokens)

    def choose(self, prompt: Prompt, constraints: Constraints) -> WorkerPair | None:
        """Choose the workers that serve a request now, by the deployment's rule; None where none can decode.

        Two workers are never tried by the same request: where both of a pair have yet to show that they have recovered,
        the prefill worker is paired with another decode worker, if there is one.
        """
        health, now = self.health, self.clock.now()
        group = self.backends
        if prompt.adapter is not None:
            group = tuple(b for b in group if prompt.adapter in b.names)
        backends = health.usable(group)
        pair = self._chooser.choose(backends, prompt, constraints, now)
        if pair is None or health.all_healthy or pair.prefill is None:
            return pair
        if health.is_ejected(pair.decode) and health.is_ejected(pair.prefill):
            others = constraints.excluding(pair.decode.id)
            return self._chooser.choose(backends, prompt, others, now) or pair
        return pair

    def begin_work(self, backend: Backend, tokens: int, pair: WorkerPair) -> InFlightClaim:
        """Count *tokens* and one request as in flight on *backend*, one of the two of *pair*, until the claim's end."""
        load = self._loads.get(backend.id)
        if load is None:
            load = self._loads[backend.id] = WorkerLoad()
        self._picks += 1
        load.last_pick = self._picks
        self.health.picked(backend)
        estimate = pair.estimate
        claim = InFlightClaim(load, tokens, estimate, backend.id, self.clock, self.dispatch)
        if estimate is not None:
            if estimate.prompt.adapter is not None:
                self._loads_adapter(backend, estimate.prompt.adapter)
            if self._parts.sender is not None:
                claim.publish(self._parts.sender, self.key, estimate)
        return claim

    @property
    def compared(self) -> Sequence[Backend]:
        """The workers among which a prefix-aware policy has a choice."""
        return self.backends if self.policy is not None and len(self.backends) > 1 else ()

    def may_scrape(self, backend: Backend) -> bool:
        """Return whether *backend* is still there and not ejected."""
        return self._state_of(backend) is not None and not self.health.is_ejected(backend)

    def scraped(self, backend: Backend, scrape: Scrape) -> None:
        """Take note of the load that *backend* has just reported."""
        if self.policy is not None:
            self.policy.scraped(backend.id, scrape, self.clock.now())

    def adapters_seen(self, backend: Backend, names: frozenset[str], most: int) -> None:
        """Take note of the LoRA adapters in use on *backend*, which holds *most* at a time."""
        state = self._state_of(backend)
        if state is not None and (names or most > 1 or backend.id in self._adapters):
            state.adapter_room = most
            state.adapters = self._adapters.setdefault(backend.id, LoadedAdapters()).seen(names, most)

    def _loads_adapter(self, backend: Backend, name: str) -> None:
        state = self._state_of(backend)
        if state is not None:
            state.adapters = self._adapters.setdefault(backend.id, LoadedAdapters()).used(name)

    def _state_of(self, backend: Backend) -> BackendState | None:
        return None if self.policy is None else self.policy.tracker.states.get(backend.id)

    def describe(self) -> list[dict[str, Any]]:
        """Return the workers with load and health, for people."""
        return [self._describe(backend) for backend in self.backends]

    @property
    def retry_tokens(self) -> float:
        """What the retry budget holds."""
        return self._retry_budget.tokens

    def _describe(self, backend: Backend) -> dict[str, Any]:
        load = self._loads.get(backend.id) or WorkerLoad()
        health = self.health.of(backend)
        until = health.ejected_until
        exact = self._parts.exact
        return {
            "id": backend.id,
            "address": f"{backend.host}:{backend.port}",
            "role": backend.role,
            "revision": backend.revision,
            "inFlightTokens": load.tokens,
            "inFlightRequests": load.requests,
            "failuresInARow": health.failures,
            "ready": backend.ready,
            "ejected": health.ejected,
            "down": health.down,
            "ejectedForSeconds": round(0.0 if until is None else max(0.0, until - self._parts.clock()), 3),
            "kvEvents": None if exact is None else exact.describe(backend),
        }
