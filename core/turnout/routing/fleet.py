"""The fleet as the router knows it at one moment: deployments, their backends, and the names that lead to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from turnout.engines import RoutedEngine
from turnout.routing.admission import NORMAL, AdmissionBounds, Tier
from turnout.terms import Queueing, Role, RoutingPolicy

_ROUTE: Final = "route "
"""Prefix of an LLMRoute's key where LLMRoutes and LLMDeployments share one map of name owners."""


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
    own readiness probe reports.
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
    """Tokens that its KV cache holds; 0 if unknown."""
    kv_events: KvEventPorts | None = None
    """None: what it holds is a matter of belief."""
    bootstrap_port: int = 0
    """Where a prefill worker of SGLang listens for decode workers; 0 where it does not."""


@dataclass(frozen=True, slots=True)
class DeploymentRoute:
    """What the router needs to know of one deployment. `key` is ``NAMESPACE/NAME``.

    Objectives are seconds of the deployment's own time, of which `time_scale` pass in one real second.
    `max_output_tokens` is the most that one request may have, None without such a bound.
    `claimed_names` are the names it claims; `settled_names` are those that the operator assigned to it, None as
    long as the operator has not decided.
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
    engine: RoutedEngine = "vllm"
    """What its workers are, or behave like."""


@dataclass(frozen=True, slots=True)
class NamedRoute:
    """Names that are shared out over deployments. `targets` are (deployment key, weight).

    `key` is ``NAMESPACE/NAME``, or a text without a slash for a route that belongs to no namespace. `names` are the
    names it claims; `settled_names` are those that the operator assigned to it, None as long as it has not decided.
    """

    key: str
    names: tuple[str, ...]
    targets: tuple[tuple[str, int], ...]
    created: float = 0.0
    settled_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What the holder of one API key may call, and how soon its turn comes. No names means every name."""

    budget: str
    name: str
    sha256: str
    models: frozenset[str] = frozenset()
    tier: Tier = NORMAL
    explain: bool = False
    """Whether the holder may request the reason for the choice of a worker."""
    namespace: str | None = None
    """The namespace whose names the key opens; None: those of every namespace."""
    created: float = 0.0
    settled: bool | None = None
    """Whether the operator assigned the key to this budget; None as long as it has not decided."""
    closed: frozenset[str] = frozenset()
    """Namespaces whose names it does not open."""

    def allows(self, model: str, namespace: str) -> bool:
        """Return whether the holder may call *model*, the name as the client wrote it, which belongs to *namespace*."""
        return (
            (self.namespace is None or self.namespace == namespace)
            and (not self.models or model in self.models)
            and namespace not in self.closed
        )


@dataclass(frozen=True, slots=True)
class Served:
    """What a name leads to: deployments with weights, and since when the name exists (Unix time).

    `owner` is the key of the deployment or route that has the name, `namespace` the namespace of it.
    """

    targets: tuple[tuple[str, int], ...]
    created: float
    listed: bool = True
    owner: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Fleet:
    """One consistent view of everything; replaced as a whole when something changes.

    `names` maps each name that clients may call; `grants` maps the SHA-256 of each known key. `reserved` maps names
    and digests that have claims but no holder now: to the namespace that held them last.
    """

    deployments: Mapping[str, DeploymentRoute] = field(default_factory=dict)
    backends: Mapping[str, tuple[Backend, ...]] = field(default_factory=dict)
    names: Mapping[str, Served] = field(default_factory=dict)
    grants: Mapping[str, Grant] = field(default_factory=dict)
    reserved: Mapping[str, str] = field(default_factory=dict)
    unknown: Grant | None = None
    """What a key that is none of `grants` opens where no key is required; None: nothing, such a key is refused."""


class _Claim:
    """An object that claims a name, or a budget that claims a key. `settled`: the operator assigned it; None: not decided yet."""

    __slots__ = ("created", "namespace", "owner", "place", "settled")

    def __init__(
        self, owner: str, namespace: str, created: float, place: int, *, settled: bool | None
    ) -> None:
        self.owner: Final = owner
        self.namespace: Final = namespace
        self.created: Final = created
        self.place: Final = place
        """Where it stands in the list of what is claimed for."""
        self.settled: Final = settled


def build_fleet(
    deployments: Iterable[DeploymentRoute],
    routes: Iterable[NamedRoute],
    grants: Iterable[Grant],
    backends: Iterable[Backend],
    before: Fleet | None = None,
) -> Fleet:
    """Return the fleet made of these parts, with every name and every key settled. *before* is the fleet until now.

    A name that several objects claim goes to the one to which the operator has assigned it in its status. While the operator
    has not decided, the oldest claim gets it (creation time, then deployments before routes, then the key), but only
    where no other namespace claims the name or had it last. What has a name in *before* keeps it in either case, as
    long as its claim stands. API keys that several budgets hold are settled alike. ``NAMESPACE/NAME`` always leads to
    that deployment: a slash is allowed in no other name. Backends of unknown deployments are left out, and those that
    are not ready where another worker can do the same phase: see `in_service`.
    """
    by_age = sorted(deployments, key=lambda d: (d.created, d.key))
    known = {d.key: d for d in by_age}
    names, reserved = _settled_names(by_age, routes, before)
    opened, held = _settled_grants(grants, before)
    grouped: dict[str, list[Backend]] = {key: [] for key in known}
    for backend in sorted(backends, key=lambda b: b.id):
        if backend.deployment in grouped:
            grouped[backend.deployment].append(backend)
    return Fleet(
        deployments=known,
        backends={key: in_service(group) for key, group in grouped.items()},
        names=names,
        grants=opened,
        reserved={**reserved, **held},
        unknown=_unknown_key(opened),
    )


def _settled_names(
    deployments: Sequence[DeploymentRoute], routes: Iterable[NamedRoute], before: Fleet | None
) -> tuple[dict[str, Served], dict[str, str]]:
    """Return what each name leads to, and the namespaces that names are kept for."""
    names: dict[str, Served] = {}
    claims: dict[str, list[_Claim]] = {}
    leads: list[tuple[tuple[tuple[str, int], ...], float]] = []
    for d in deployments:
        namespace = namespace_of(d.key)
        names[d.key] = Served(((d.key, 1),), d.created, listed=False, owner=d.key, namespace=namespace)
        claim = _Claim(
            d.key, namespace, d.created, len(leads), settled=None if d.settled_names is None else True
        )
        leads.append((((d.key, 1),), d.created))
        for name in d.claimed_names if d.settled_names is None else d.settled_names:
            claims.setdefault(name, []).append(claim)
    for r in sorted(routes, key=lambda r: (r.created, r.key)):
        # A deployment and a route may have the same key.
        claim = _Claim(
            f"{_ROUTE}{r.key}",
            namespace_of(r.key),
            r.created,
            len(leads),
            settled=None if r.settled_names is None else True,
        )
        leads.append((r.targets, r.created))
        for name in r.names if r.settled_names is None else r.settled_names:
            claims.setdefault(name, []).append(claim)
    reserved: dict[str, str] = {}
    for name, rivals in claims.items():
        had = None if before is None else before.names.get(name)
        kept = namespace_of(had.owner) if had is not None else None
        if kept is None and before is not None:
            kept = before.reserved.get(name)
        winner = _winner(rivals, None if had is None else had.owner, kept)
        if winner is not None:
            targets, created = leads[winner.place]
            names.setdefault(name, Served(targets, created, owner=winner.owner, namespace=winner.namespace))
        elif kept is not None:
            reserved[name] = kept
    return names, reserved


def _settled_grants(grants: Iterable[Grant], before: Fleet | None) -> tuple[dict[str, Grant], dict[str, str]]:
    """Return the grant of each key, and the namespaces that keys are kept for."""
    by_key: dict[str, list[Grant]] = {}
    for grant in grants:
        if grant.settled is not False:
            by_key.setdefault(grant.sha256, []).append(grant)
    settled: dict[str, Grant] = {}
    reserved: dict[str, str] = {}
    for digest, rivals in by_key.items():
        had = None if before is None else before.grants.get(digest)
        kept = namespace_of(had.budget) if had is not None else None
        if kept is None and before is not None:
            kept = before.reserved.get(digest)
        claims = [
            _Claim(grant.budget, namespace_of(grant.budget), grant.created, place, settled=grant.settled)
            for place, grant in enumerate(rivals)
        ]
        winner = _winner(claims, None if had is None else had.budget, kept)
        if winner is not None:
            settled[digest] = rivals[winner.place]
        elif kept is not None:
            reserved[digest] = kept
    return settled, reserved


def _winner(claims: list[_Claim], holder: str | None, kept: str | None) -> _Claim | None:
    """Return the claim that stands, None where that is for the operator to say.

    *holder* is the key of the current holder of the name, None without one; *kept* is the namespace of the last holder.
    """
    if len(claims) == 1 and (claims[0].settled or kept is None or kept == claims[0].namespace):
        return claims[0]  # nearly every name is one's alone
    settled = [claim for claim in claims if claim.settled]
    among = settled or claims
    for claim in among:
        if claim.owner == holder:
            return claim
    if not settled and {claim.namespace for claim in claims} | ({kept} - {None}) != {claims[0].namespace}:
        return None
    return min(among, key=lambda claim: (claim.created, claim.owner.startswith(_ROUTE), claim.owner))


def _unknown_key(grants: Mapping[str, Grant]) -> Grant | None:
    """Return what a key that is none of *grants* opens: the names of namespaces that have no keys of their own.

    A tenant that begins to use keys does not lock out another one's clients, which may send any.
    """
    namespaces = {grant.namespace for grant in grants.values()}
    if None in namespaces:
        return None
    return Grant("", "", "", closed=frozenset(namespace for namespace in namespaces if namespace is not None))


def namespace_of(key: str) -> str:
    """Return the namespace in *key* (``NAMESPACE/NAME``), an empty text where there is none."""
    namespace, slash, _ = key.removeprefix(_ROUTE).partition("/")
    return namespace if slash else ""


def in_service(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Return the backends of one deployment that may be chosen: the ready ones of each phase (prefill, decode).

    Where no backend of a phase is ready, its unready ones are the last resort. On a starved machine readiness
    probes of all of them fail together although they still serve; where they do not, trying costs one more
    refused connection before the client gets the same answer.
    """
    if all(b.ready for b in backends):
        return tuple(backends)
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
