"""The fleet as the router knows it at one moment: deployments, their backends, and the names that lead to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from turnout.api.deployment import Queueing, Role, RoutingPolicy
from turnout.routing.admission import NORMAL, AdmissionBounds, Tier


@dataclass(frozen=True, slots=True)
class KvEventPorts:
    """Where a worker publishes what its prefix cache holds, and where it repeats that; 0: it does not."""

    events: int
    replay: int = 0


@dataclass(frozen=True, slots=True)
class Backend:
    """One worker that may be sent requests now.

    `id` is what people see (a pod's name, or host:port), `host` and `port` where it answers, `names` the model
    names that it answers to, the first of which is used for a client that called another one. `ready` is what its
    own readiness probe says of it.
    """

    id: str
    deployment: str
    host: str
    port: int
    role: Role
    revision: str
    names: tuple[str, ...]
    ready: bool = True
    kv_tokens: int = 0
    """Tokens that its KV cache holds; 0 where nobody has said."""
    kv_events: KvEventPorts | None = None
    """None: what it holds is a matter of belief."""


@dataclass(frozen=True, slots=True)
class DeploymentRoute:
    """What the router needs to know of one deployment. `key` is ``NAMESPACE/NAME``.

    Objectives are seconds of the deployment's own time, of which `time_scale` pass in one real second.
    `max_output_tokens` is the most that one request may ask for, None without such a bound.
    `claimed_names` are the names it asks for; `settled_names` are those that the operator left to it, None as
    long as the operator has not said.
    """

    key: str
    claimed_names: tuple[str, ...]
    settled_names: tuple[str, ...] | None = None
    created: float = 0.0
    time_to_first_token_seconds: float = 2.0
    inter_token_seconds: float = 0.05
    max_output_tokens: int | None = None
    time_scale: float = 1.0
    local_prefill_below_tokens: int = 256
    policy: RoutingPolicy = "PrefixAware"
    adapters: frozenset[str] = frozenset()
    """LoRA adapters that its workers serve, by the names that clients call."""
    admission: AdmissionBounds = field(default_factory=AdmissionBounds)
    """Its own bounds on what is let in and what waits."""
    queueing: Queueing = "Engine"
    """Where requests wait that no backend can begin with."""


@dataclass(frozen=True, slots=True)
class NamedRoute:
    """Names that are shared out over deployments. `targets` are (deployment key, weight)."""

    key: str
    names: tuple[str, ...]
    targets: tuple[tuple[str, int], ...]
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Grant:
    """What the holder of one API key may call, and how soon its turn comes. No names means every name."""

    budget: str
    name: str
    sha256: str
    models: frozenset[str] = frozenset()
    tier: Tier = NORMAL
    explain: bool = False
    """Whether the holder may ask why its requests went where they did."""

    def allows(self, model: str) -> bool:
        """Say whether the holder may call *model*, the name as the client wrote it."""
        return not self.models or model in self.models


@dataclass(frozen=True, slots=True)
class Served:
    """What a name leads to: deployments with weights, and since when the name exists (Unix time)."""

    targets: tuple[tuple[str, int], ...]
    created: float
    listed: bool = True


@dataclass(frozen=True, slots=True)
class Fleet:
    """One consistent view of everything; replaced as a whole when something changes.

    `names` maps each name that clients may call; `grants` maps the SHA-256 of each known key.
    """

    deployments: Mapping[str, DeploymentRoute] = field(default_factory=dict)
    backends: Mapping[str, tuple[Backend, ...]] = field(default_factory=dict)
    names: Mapping[str, Served] = field(default_factory=dict)
    grants: Mapping[str, Grant] = field(default_factory=dict)


def build_fleet(
    deployments: Iterable[DeploymentRoute],
    routes: Iterable[NamedRoute],
    grants: Iterable[Grant],
    backends: Iterable[Backend],
) -> Fleet:
    """Return the fleet made of these parts, with every name settled.

    Who gets a name that several claim: the deployment to which the operator has given it in its status; after
    that the oldest deployment that claims it and has no status yet; after that the oldest route. Age is the
    creation time, then the key. ``NAMESPACE/NAME`` always leads to that deployment: a slash is allowed in no other
    name. Backends of unknown deployments are left out, and those that are not ready where another one can do
    their half: see `in_service`.
    """
    by_age = sorted(deployments, key=lambda d: (d.created, d.key))
    known = {d.key: d for d in by_age}
    names = {d.key: Served(((d.key, 1),), d.created, listed=False) for d in by_age}
    for d in by_age:
        for name in d.settled_names or ():
            names.setdefault(name, Served(((d.key, 1),), d.created))
    for d in by_age:
        if d.settled_names is None:
            for name in d.claimed_names:
                names.setdefault(name, Served(((d.key, 1),), d.created))
    for route in sorted(routes, key=lambda r: (r.created, r.key)):
        for name in route.names:
            names.setdefault(name, Served(route.targets, route.created))
    grouped: dict[str, list[Backend]] = {key: [] for key in known}
    for backend in sorted(backends, key=lambda b: b.id):
        if backend.deployment in grouped:
            grouped[backend.deployment].append(backend)
    return Fleet(
        deployments=known,
        backends={key: in_service(group) for key, group in grouped.items()},
        names=names,
        grants={grant.sha256: grant for grant in grants},
    )


def in_service(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Return the backends of one deployment that may be chosen: the ready ones of each half (prefill, decoding).

    Where no backend of a half is ready, its unready ones are the last resort. On a starved machine readiness
    probes of all of them fail together although they still serve; where they do not, trying costs one more
    refused connection before the client is told the same.
    """
    ready_halves = {b.role == "prefill" for b in backends if b.ready}
    return tuple(b for b in backends if b.ready or (b.role == "prefill") not in ready_halves)


def resolve(fleet: Fleet, name: str, draw: float) -> str | None:
    """Return the key of the deployment that a request for *name* goes to, or None where nothing has that name.

    *draw* is a random number in [0, 1), used where the name is a route with several targets.
    """
    served = fleet.names.get(name)
    if served is None:
        return None
    targets = served.targets
    if len(targets) == 1:
        key = targets[0][0]
        return key if key in fleet.deployments else None
    return choose_target(tuple(t for t in targets if t[0] in fleet.deployments), draw)


def choose_target(targets: tuple[tuple[str, int], ...], draw: float) -> str | None:
    """Return one of *targets* with the probability of its weight, None where no weight is above 0."""
    total = sum(weight for _, weight in targets)
    point = draw * total
    chosen = None
    for key, weight in targets:
        if weight > 0:
            chosen = key
            if point < weight:
                break
            point -= weight
    return chosen
