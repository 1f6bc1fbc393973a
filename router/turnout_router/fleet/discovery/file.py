"""The fleet from a YAML file, for running without Kubernetes. Read again when it changes, and on SIGHUP.

Example::

    deployments:
      - name: default/llama-8b
        servedNames: [llama-3.1-8b]
        maxOutputTokens: 4096                   # most output tokens of one request
        slo: {timeToFirstToken: 500ms, interTokenLatency: 40ms}
        timeScale: 1
        localPrefillBelowTokens: 256
        policy: PrefixAware                     # or LeastLoaded
        engine: vllm                            # or sglang: how prefill and decode workers share a request
        queueing: Engine                        # or Router: what no worker can begin with waits here, shortest first
        admission: {requestsPerWorker: 256, waitingRequests: 100, maxWait: 10s}  # see LLMDeployment
        adapters: [sql]                         # LoRA adapters that its workers serve, by name
        backends:
          - {url: "http://127.0.0.1:8001", role: prefill, revision: a, kvEvents: {port: 5557, replayPort: 5558}}
          - {url: "http://127.0.0.1:8002", role: decode, revision: a}
          # bootstrapPort of SGLang's prefill workers: 8998
    routes:
      - names: [chat]
        targets: [{deployment: default/llama-8b, weight: 1}]
    budgets:
      - name: default/team
        keys: [{name: alice, sha256: ...}]      # as `turnout key create` prints it
        models: [chat]
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError

from turnout.api import ApiKey, Objectives
from turnout.api.deployment import QUEUEING_NEEDS_WORK, Admission
from turnout.api.loading import faults
from turnout.api.meta import Model
from turnout.api.rules import Rule
from turnout.engines import RoutedEngine
from turnout.quantities import seconds
from turnout.routing import Backend, DeploymentRoute, Fleet, Grant, KvEventPorts, NamedRoute, build_fleet
from turnout.routing.admission import TIER_OF
from turnout.terms import KV_EVENTS_PORT, Priority, Queueing, Role, RoutingPolicy
from turnout_router.errors import ConfigError
from turnout_router.fleet.discovery.translate import bounds_of
from turnout_router.fleet.discovery.yamlfile import read_yaml, stamp_of

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_router.fleet.discovery.port import FleetObserver
    from turnout_router.fleet.discovery.yamlfile import Stamp
    from turnout_runtime.supervision import Supervisor

_POLL_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 0.1
_SETTLE_TRIES: Final = 20

BOOTSTRAP_PORT: Final = 8998
"""SGLang's own default."""
_Name = Annotated[str, Field(min_length=1, max_length=96)]
_Key = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"{url!r} is no worker's address: write http://HOST:PORT")
    if parts.port is None:
        raise ValueError(f"{url!r} names no port: write http://HOST:PORT")
    return url


class FileKvEvents(Model):
    """Where a worker publishes KV events, see its --kv-events-config. `replay_port` 0: it does not repeat them."""

    port: int = Field(default=KV_EVENTS_PORT, ge=1, le=65535)
    replay_port: int = Field(default=0, ge=0, le=65535)


class FileBackend(Model):
    """One worker."""

    url: Annotated[str, AfterValidator(_check_url)]
    role: Role
    revision: _Name = "a"
    kv_tokens: int = Field(default=0, ge=0)
    kv_events: FileKvEvents | None = None
    bootstrap_port: int = Field(default=BOOTSTRAP_PORT, ge=1, le=65535)
    """Of a prefill worker of SGLang, see its --disaggregation-bootstrap-port."""


class FileDeployment(Model):
    """One deployment. `name` is ``NAMESPACE/NAME``."""

    name: _Key
    served_names: list[_Name] = Field(min_length=1, max_length=16)
    slo: Objectives = Field(default_factory=Objectives)
    max_output_tokens: int | None = Field(default=None, ge=1, le=1_048_576)
    time_scale: int = Field(default=1, ge=1, le=100)
    local_prefill_below_tokens: int = Field(default=256, ge=0, le=1_048_576)
    policy: RoutingPolicy = "PrefixAware"
    queueing: Queueing = "Engine"
    engine: RoutedEngine = "vllm"
    admission: Admission = Field(default_factory=Admission)
    adapters: list[_Name] = Field(default_factory=list, max_length=256)
    backends: list[FileBackend] = Field(default_factory=list, max_length=10_000)

    rules: ClassVar[tuple[Rule, ...]] = (QUEUEING_NEEDS_WORK,)


class FileTarget(Model):
    """One target of a route."""

    deployment: _Key
    weight: int = Field(default=1, ge=0, le=1000)


class FileRoute(Model):
    """Names shared out over deployments."""

    names: list[_Name] = Field(min_length=1, max_length=16)
    targets: list[FileTarget] = Field(min_length=1, max_length=16)


class FileBudget(Model):
    """Keys and the names that they may call; none means all, of every namespace: the author of the file runs the router.

    The rest is as in a TokenBudget.
    """

    name: _Key
    keys: list[ApiKey] = Field(min_length=1, max_length=64)
    priority: Priority = "Normal"
    explain: bool = False
    models: list[str] = Field(default_factory=list, max_length=64)


class FileConfig(Model):
    """The whole file."""

    deployments: list[FileDeployment] = Field(default_factory=list)
    routes: list[FileRoute] = Field(default_factory=list)
    budgets: list[FileBudget] = Field(default_factory=list)


def read_config(path: Path) -> Fleet:
    """Return the fleet that *path* describes. Raise ConfigError, with what is wrong where.

    A file that is empty, or has no `deployments`, is refused, because it may be partly written: a fleet without workers
    is written as ``deployments: []`` (or ``{}``).
    """
    raw = read_yaml(path)
    if raw is None:
        raise ConfigError(
            f"{path} is empty: write `deployments: []` where a fleet without deployments is meant"
        )
    try:
        config = FileConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {faults(error)}") from error
    if config.model_fields_set and "deployments" not in config.model_fields_set:
        raise ConfigError(f"{path} has no `deployments`: write `deployments: []` where none are meant")
    _check_references(path, config)
    return _fleet_of(config)


def _check_references(path: Path, config: FileConfig) -> None:
    keys = [d.name for d in config.deployments]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ConfigError(
            f"{path}: two deployments are called {', '.join(sorted(twice))}; give each its own name"
        )
    claimed: dict[str, str] = {}
    for owner, names in (
        *((d.name, (*d.served_names, *d.adapters)) for d in config.deployments),
        *((f"routes[{i}]", r.names) for i, r in enumerate(config.routes)),
    ):
        for name in names:
            if claimed.setdefault(name, owner) != owner:
                raise ConfigError(f"{path}: {owner} and {claimed[name]} both claim the name {name!r}")
    for deployment in config.deployments:
        if deployment.policy != "PrefixAware" and any(b.kv_events for b in deployment.backends):
            raise ConfigError(
                f"{path}: kvEvents of {deployment.name} have no effect with the policy {deployment.policy}:"
                " leave them out, or choose PrefixAware"
            )
    for index, route in enumerate(config.routes):
        for target in route.targets:
            if target.deployment not in keys:
                raise ConfigError(
                    f"{path}: routes[{index}] leads to {target.deployment}, which is none of the deployments"
                )


def _fleet_of(config: FileConfig) -> Fleet:
    return build_fleet(
        deployments=[
            DeploymentRoute(
                key=d.name,
                claimed_names=(*d.served_names, *d.adapters),
                settled_names=(*d.served_names, *d.adapters),
                time_to_first_token_seconds=seconds(d.slo.time_to_first_token),
                inter_token_seconds=seconds(d.slo.inter_token_latency),
                max_output_tokens=d.max_output_tokens,
                time_scale=d.time_scale,
                local_prefill_below_tokens=d.local_prefill_below_tokens,
                policy=d.policy,
                adapters=frozenset(d.adapters),
                admission=bounds_of(d.admission),
                queueing=d.queueing,
                engine=d.engine,
            )
            for d in config.deployments
        ],
        routes=[
            NamedRoute(
                key=f"routes[{index}]",
                names=tuple(route.names),
                targets=tuple((t.deployment, t.weight) for t in route.targets),
                settled_names=tuple(route.names),
            )
            for index, route in enumerate(config.routes)
        ],
        grants=[
            Grant(
                budget=b.name,
                name=k.name,
                sha256=k.sha256,
                models=frozenset(b.models),
                tier=TIER_OF[b.priority],
                explain=b.explain,
                settled=True,
            )
            for b in config.budgets
            for k in b.keys
        ],
        backends=[_backend(d, b) for d in config.deployments for b in d.backends],
    )


def _backend(deployment: FileDeployment, backend: FileBackend) -> Backend:
    parts, events = urlsplit(backend.url), backend.kv_events
    return Backend(
        id=parts.netloc,
        deployment=deployment.name,
        host=parts.hostname or "",
        port=parts.port or 80,
        role=backend.role,
        revision=backend.revision,
        names=(*deployment.served_names, *deployment.adapters),
        kv_tokens=backend.kv_tokens,
        kv_events=None if events is None else KvEventPorts(events.port, events.replay_port),
        bootstrap_port=backend.bootstrap_port,
    )


class FileSource:
    """The fleet of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wake = asyncio.Event()
        self._was_read = False

    async def run(self, observer: FleetObserver, supervisor: Supervisor) -> None:  # noqa: ARG002 - the protocol's
        """Read the file, then again whenever it changes. Raise ConfigError where the very first reading fails."""
        seen = stamp_of(self._path)
        await self._read(observer)
        while True:
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._wake.wait()
                asked = True
            except TimeoutError:
                asked = False
            self._wake.clear()
            if stamp_of(self._path) == seen and not asked:
                continue
            seen = await self._settled()
            await self._read(observer)

    async def _read(self, observer: FleetObserver) -> None:
        try:
            fleet = await asyncio.to_thread(read_config, self._path)
        except ConfigError as error:
            if not self._was_read:
                raise
            observer.rejected(str(error))
            observer.stale(str(error))
            return
        self._was_read = True
        observer.changed(fleet)
        observer.stale("")

    def reload(self) -> None:
        """Read the file again now."""
        self._wake.set()

    async def _settled(self) -> Stamp | None:
        """Return the file's stamp once it no longer changes, or has changed for long enough.

        The beginning of a file can be a valid file: one that is being written gets the time to be complete.
        """
        stamp = stamp_of(self._path)
        for _ in range(_SETTLE_TRIES):
            await asyncio.sleep(_SETTLE_SECONDS)
            before, stamp = stamp, stamp_of(self._path)
            if stamp == before:
                break
        return stamp
