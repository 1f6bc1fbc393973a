"""The fleet in use: who may be chosen now, what each worker has in flight, and how it has fared."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from turnout.routing import (
    HEALTHY,
    Backend,
    Choice,
    Fleet,
    Health,
    RetryBudget,
    after_check,
    after_failure,
    after_request,
    after_retry,
    after_success,
    after_trial,
    may_retry,
    needs_trial,
    on_pick,
    on_trial,
    pick_pair,
    usable,
)
from turnout.routing.admission import AdmissionLimits
from turnout.routing.ledger import Ledger, Prompt
from turnout.routing.policy import PrefixAware
from turnout.routing.select import select
from turnout.routing.work import WorkModel
from turnout_router.admission import Gates
from turnout_router.hold import Hold, InFlight
from turnout_router.learning import Facts
from turnout_router.line import Line
from turnout_router.metrics import Standing
from turnout_router.prefixes import BLOCK_TOKENS, prompt_blocks
from turnout_router.scrapes.adapters import LoadedAdapters, blocks_under

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnout.routing import DeploymentRoute, HealthPolicy
    from turnout.routing.ledger import BackendState, Scrape
    from turnout.routing.pick import LocalReason
    from turnout_router.errors import UpstreamError
    from turnout_router.kvevents import ExactMode
    from turnout_router.metrics import Metrics
    from turnout_router.openai import Completion
    from turnout_router.peers.outbox import Outbox
    from turnout_router.pools import Pools


UNTOLD_KV_TOKENS: Final = 400_000
"""KV cache of a worker that nobody has said anything of: about an 8B model on one accelerator of 80 GB. What usage
says of cached tokens puts it right."""


_FULL: Final = RetryBudget()
_MOST_SUSPICIONS: Final = 8
"""Requests at a time for which a worker's 5xx may be the request's own fault. With more, it is the worker's."""


class Backends:
    """Keeps the pure decisions' state: the fleet, in-flight accounting, health, the retry budget."""

    def __init__(
        self,
        pools: Pools,
        metrics: Metrics,
        policy: HealthPolicy,
        clock: Callable[[], float],
        admission: AdmissionLimits | None = None,
    ) -> None:
        self.fleet = Fleet()
        self.pools = pools
        self.gates = Gates(admission or AdmissionLimits())
        self._metrics = metrics
        self._policy = policy
        self._clock = clock
        self._loads: dict[str, InFlight] = {}
        self._health: dict[str, Health] = {}
        self._suspicions: dict[str, int] = {}
        self._budgets: dict[str, RetryBudget] = {}
        """Retries by deployment: one whose workers fail does not use up what repairs another one's failures."""
        self._picks = 0
        self._policies: dict[str, PrefixAware] = {}
        self._scales: dict[str, float] = {}
        self._adapters: dict[str, LoadedAdapters] = {}
        self.facts = Facts()
        """What workers say of their models."""
        self.lines: dict[str, Line] = {}
        """Where requests wait for a worker that could begin with them, of deployments that ask for it."""
        self.outbox: Outbox | None = None
        """Tells other routers of this one's requests. None where there are none."""
        self.exact: ExactMode | None = None
        """Follows workers that publish KV events. None as long as none does."""

    def update(self, fleet: Fleet) -> None:
        """Use *fleet* from now on. What runs on workers that left goes on; what is known of them is forgotten."""
        self.fleet = fleet
        present = {b.id: b for group in fleet.backends.values() for b in group}
        self._health = {id_: state for id_, state in self._health.items() if id_ in present}
        self._loads = {id_: load for id_, load in self._loads.items() if id_ in present or load.requests}
        self._adapters = {id_: loaded for id_, loaded in self._adapters.items() if id_ in present}
        self.facts.retain(fleet)
        self.gates.resize(
            {key: sum(b.role != "prefill" for b in group) for key, group in fleet.backends.items()},
            {key: route.admission for key, route in fleet.deployments.items()},
        )
        self._policies = {
            key: self._policies.get(key) or PrefixAware(Ledger(BLOCK_TOKENS), WorkModel())
            for key, route in fleet.deployments.items()
            if route.policy == "PrefixAware"
        }
        self._scales = {key: route.time_scale for key, route in fleet.deployments.items()}
        for key, policy in self._policies.items():
            policy.ledger.set_backends(
                (b.id, b.kv_tokens or UNTOLD_KV_TOKENS) for b in fleet.backends.get(key, ())
            )
        if self.exact is not None or any(b.kv_events is not None for b in present.values()):
            self._follow_events(fleet)
        self._line_up(fleet)
        self.pools.retain((b.host, b.port) for b in present.values())
        self._budgets = {key: budget for key, budget in self._budgets.items() if key in fleet.deployments}
        self._metrics.retain(fleet.deployments)
        self._metrics.fleet_updates.inc()

    def _line_up(self, fleet: Fleet) -> None:
        wanted = {key for key in self._policies if fleet.deployments[key].queueing == "Router"}
        for key in [key for key in self.lines if key not in wanted]:
            self.lines.pop(key).dissolve()
        for key in wanted:
            line = self.lines.get(key)
            if line is not None:
                line.advance()
                continue
            now = partial(self._time_of, key)
            counts = {half: Standing(now) for half in ("prefill", "decode")}
            self._metrics.of(key).held = counts
            self.lines[key] = Line(self._policies[key], counts, now)

    def _time_of(self, key: str) -> float:
        """Return the time of a deployment, which may pass faster than the router's."""
        return self._clock() * self._scales.get(key, 1.0)

    def stop(self) -> None:
        """Follow nobody's events any more."""
        if self.exact is not None:
            self.exact.stop()

    def _follow_events(self, fleet: Fleet) -> None:
        if self.exact is None:
            from turnout_router.kvevents import ExactMode  # noqa: PLC0415 - ZeroMQ is for those who use it

            self.exact = ExactMode(
                self.pools, self._clock, self._metrics.registry, lambda b: b.kv_tokens or UNTOLD_KV_TOKENS
            )
        self.exact.update(fleet, {key: policy.ledger for key, policy in self._policies.items()})

    def arrived(self, deployment: str) -> None:
        """Pay a request into the deployment's retry budget."""
        before = self._budgets.get(deployment, _FULL)
        after = after_request(before)
        if after is not before:
            self._budgets[deployment] = after

    def take_retry(self, deployment: str, *, overloaded: bool = False) -> bool:
        """Take one retry out of the budget, or say that there is none. *overloaded*: a worker is full, none has failed."""
        budget = self._budgets.get(deployment, _FULL)
        if not may_retry(budget, overloaded=overloaded):
            return False
        self._budgets[deployment] = after_retry(budget)
        return True

    def context_of(self, deployment: str) -> int | None:
        """Return how many tokens prompt and answer may have together, as the workers say; None where they have not."""
        facts = self.facts.of(deployment)
        return None if facts is None else facts.max_model_len

    def prompt_of(self, request: Completion, route: DeploymentRoute) -> Prompt:
        """Return what a choice needs to know of *request*; its prefix only where there is a choice by it."""
        blocks: tuple[int, ...] = ()
        if route.key in self._policies and len(self.fleet.backends.get(route.key, ())) > 1:
            blocks = prompt_blocks(request.body, request.prompt)
        tokens = max(1, request.prompt_tokens, len(blocks) * BLOCK_TOKENS)
        if route.adapters and request.model in route.adapters:
            adapter = request.model
            return Prompt(tokens, blocks_under(adapter, blocks), request.expected_output_tokens, adapter)
        return Prompt(tokens, blocks, request.expected_output_tokens)

    def pick(
        self,
        route: DeploymentRoute,
        prompt: Prompt,
        *,
        excluded: frozenset[str],
        avoided: frozenset[str],
        local: LocalReason | None,
    ) -> Choice | None:
        """Choose who serves a request now, see `turnout.routing.select` and `turnout.routing.pick_pair`.

        Two workers are never tried by the same request: where both halves of a pair have yet to show that they have
        recovered, the prefill worker is paired with another decode worker, if there is one.
        """
        now = self._clock()
        group = self.fleet.backends.get(route.key, ())
        if prompt.adapter is not None:
            group = tuple(b for b in group if prompt.adapter in b.names)
        backends = usable(group, self._health, now)
        choice = self._choose(route, prompt, backends, now, excluded=excluded, avoided=avoided, local=local)
        if choice is not None and self._health:
            pair = (choice.decode, choice.prefill)
            if all(b is not None and self._health.get(b.id, HEALTHY).ejected for b in pair):
                others = excluded | {choice.decode.id}
                again = self._choose(
                    route, prompt, backends, now, excluded=others, avoided=avoided, local=local
                )
                choice = again or choice
        return choice

    def compared(self) -> list[Backend]:
        """Return the workers among which a prefix-aware policy has a choice."""
        groups = [self.fleet.backends.get(key, ()) for key in self._policies]
        return [backend for group in groups if len(group) > 1 for backend in group]

    def may_ask(self, backend: Backend) -> bool:
        """Say whether *backend* is still there and not left alone."""
        return self._state_of(backend) is not None and not self._health.get(backend.id, HEALTHY).ejected

    def scraped(self, backend: Backend, scrape: Scrape) -> None:
        """Take note of what *backend* has just said of its load."""
        policy = self._policies.get(backend.deployment)
        if policy is not None:
            policy.scraped(backend.id, scrape, self._clock() * self._scales.get(backend.deployment, 1.0))

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
        policy = self._policies.get(backend.deployment)
        return None if policy is None else policy.ledger.states.get(backend.id)

    def _choose(
        self,
        route: DeploymentRoute,
        prompt: Prompt,
        backends: Sequence[Backend],
        now: float,
        *,
        excluded: frozenset[str],
        avoided: frozenset[str],
        local: LocalReason | None,
    ) -> Choice | None:
        below = route.local_prefill_below_tokens
        policy = self._policies.get(route.key)
        if policy is None:
            return pick_pair(
                backends,
                self._loads,
                prompt.tokens,
                below,
                excluded=excluded,
                avoided=avoided,
                local=local,
            )
        return select(
            policy,
            backends,
            prompt,
            now * route.time_scale,
            local_prefill_below_tokens=below,
            excluded=excluded,
            avoided=avoided,
            local=local,
        )

    def hold(self, backend: Backend, tokens: int, choice: Choice) -> Hold:
        """Count *tokens* and one request as in flight on *backend*, one of the two of *choice*, until its end."""
        load = self._loads.get(backend.id)
        if load is None:
            load = self._loads[backend.id] = InFlight()
        self._picks += 1
        load.last_pick = self._picks
        if backend.id in self._health:
            self._health[backend.id] = on_pick(self._health[backend.id], self._clock(), self._policy)
        key, picks = backend.deployment, choice.picks
        hold = Hold(
            load,
            tokens,
            picks,
            backend.id,
            self._clock,
            self._scales.get(key, 1.0),
            self.lines.get(key) if self.lines else None,
        )
        if picks is not None:
            if picks.prompt.adapter is not None:
                self._loads_adapter(backend, picks.prompt.adapter)
            if self.outbox is not None:
                hold.tell(self.outbox, key, picks)
        return hold

    def book_of(self, deployment: str) -> tuple[Ledger, float] | None:
        """Return the ledger of *deployment* and its time scale; None where no prefix-aware policy serves it."""
        policy = self._policies.get(deployment)
        return None if policy is None else (policy.ledger, self._scales.get(deployment, 1.0))

    def succeeded(self, backend: Backend) -> None:
        """Note an answer of *backend*."""
        if backend.id in self._health:
            state = after_success(self._health[backend.id])
            if state == HEALTHY:
                del self._health[backend.id]

    def failed(self, backend: Backend, error: UpstreamError) -> None:
        """Note a failure of *backend*, where it speaks against its health."""
        if error.is_ill:
            state = self._health.get(backend.id, HEALTHY)
            self._health[backend.id] = after_failure(state, self._clock(), self._policy)

    def suspect(self, backend: Backend) -> bool:
        """Note that *backend* answered a request with 5xx, which may be the request's fault; see `cleared`.

        Return False where it is blamed as `failed` does: it has failed others just now, or is suspected of too much.
        """
        suspicions = self._suspicions.get(backend.id, 0)
        if suspicions >= _MOST_SUSPICIONS or backend.id in self._health:
            return False
        self._suspicions[backend.id] = suspicions + 1
        return True

    def cleared(self, backend: Backend) -> None:
        """Take a suspicion back: it has become a failure, or the request was at fault."""
        left = self._suspicions.pop(backend.id, 0) - 1
        if left > 0:
            self._suspicions[backend.id] = left

    def patience(self, backend: Backend, seconds: float) -> float:
        """Return how long a request that was just sent to *backend* may wait for it, *seconds* at most."""
        return min(seconds, self._policy.probe_seconds) if self.on_trial(backend) else seconds

    def on_trial(self, backend: Backend) -> bool:
        """Say whether the request sent to *backend* tries whether it has recovered."""
        return on_trial(self._health.get(backend.id, HEALTHY))

    def ejected(self) -> list[Backend]:
        """Return the workers that are left alone now."""
        return (
            [
                backend
                for group in self.fleet.backends.values()
                for backend in group
                if self._health.get(backend.id, HEALTHY).ejected
            ]
            if self._health
            else []
        )

    def checked(self, backend: Backend, *, answered: bool) -> None:
        """Note whether *backend* answered when it was asked for its health."""
        if backend.id in self._health:
            self._health[backend.id] = after_check(self._health[backend.id], self._clock(), answered=answered)

    def begin_trial(self, backend: Backend) -> float | None:
        """Return how long *backend* has to compute what the router asks of it, None where nothing is to be asked now."""
        now, health = self._clock(), self._health.get(backend.id, HEALTHY)
        if not needs_trial(health, now):
            return None
        self._health[backend.id] = on_pick(health, now, self._policy)
        return self._policy.probe_seconds

    def passed_trial(self, backend: Backend) -> None:
        """Note that *backend* has computed what the router asked of it: a client's request may try it next."""
        if backend.id in self._health:
            self._health[backend.id] = after_trial(self._health[backend.id])

    def describe(self) -> dict[str, Any]:
        """Return the fleet with loads and health, for people."""
        now = self._clock()
        return {
            "deployments": {
                key: [self._describe(backend, now) for backend in group]
                for key, group in self.fleet.backends.items()
            },
            "names": {name: dict(served.targets) for name, served in self.fleet.names.items()},
            "retryBudgets": {key: self._budgets.get(key, _FULL).tokens for key in self.fleet.deployments},
        }

    def _describe(self, backend: Backend, now: float) -> dict[str, Any]:
        load = self._loads.get(backend.id, InFlight())
        health = self._health.get(backend.id, HEALTHY)
        ejected = 0.0 if health.ejected_until is None else max(0.0, health.ejected_until - now)
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
            "ejectedForSeconds": round(ejected, 3),
            "kvEvents": None if self.exact is None else self.exact.describe(backend),
        }
