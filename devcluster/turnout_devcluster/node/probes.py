"""Startup, readiness and liveness: what a probe asks, and what its answers mean over time.

https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/ is the rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout_devcluster.node.model import Json

ProbeKind = Literal["startup", "readiness", "liveness"]
KINDS: tuple[ProbeKind, ...] = ("startup", "readiness", "liveness")


@dataclass(frozen=True, slots=True)
class HttpGet:
    """Ask for a page; any status from 200 to 399 is success."""

    host: str
    port: int
    path: str
    scheme: Literal["HTTP", "HTTPS"]
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TcpConnect:
    """Open a connection; success where it is accepted."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Execute:
    """Run a command in the container; status 0 is success."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing for a while (hooks only)."""

    seconds: float


Action = HttpGet | TcpConnect | Execute | Sleep


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe of a container. Times in seconds."""

    kind: ProbeKind
    action: Action
    initial_delay: float
    period: float
    timeout: float
    success_threshold: int
    failure_threshold: int
    grace: float | None
    """Grace period of the stop that a failure leads to, where it is not the pod's."""


@dataclass(frozen=True, slots=True)
class ProbeState:
    """What the answers so far add up to."""

    passing: bool
    """The verdict; it changes when a threshold is reached."""
    run: int = 0
    """Equal answers in a row."""
    last: bool | None = None
    """The last answer."""


def initial(kind: ProbeKind, *, passing: bool | None = None) -> ProbeState:
    """Return the state before the first answer: a liveness probe passes until it fails, the others not.

    *passing* is what was known before, where the node adopts a container that runs already.
    """
    return ProbeState(passing=kind == "liveness" if passing is None else passing)


def observe(probe: Probe, state: ProbeState, *, success: bool) -> ProbeState:
    """Return the state after one more answer."""
    run = state.run + 1 if state.last == success else 1
    threshold = probe.success_threshold if success else probe.failure_threshold
    return ProbeState(passing=success if run >= threshold else state.passing, run=run, last=success)


def port_number(port: int | str, container: Json) -> int:
    """Return the number of *port*, which may be the name of one of the container's. Raise KeyError."""
    if isinstance(port, int) or str(port).isdigit():
        return int(port)
    for declared in container.get("ports") or ():
        if declared.get("name") == port:
            return int(declared["containerPort"])
    raise KeyError(f"container {container['name']} has no port named {port}")


def action_of(handler: Json, container: Json, pod_ip: str) -> Action | None:
    """Return what *handler* (of a probe or hook) asks for, None where it asks for nothing. Raise KeyError."""
    if "httpGet" in handler:
        get: Mapping[str, object] = handler["httpGet"]
        return HttpGet(
            host=str(get.get("host") or pod_ip),
            port=port_number(handler["httpGet"]["port"], container),
            path="/" + str(get.get("path") or "/").lstrip("/"),
            scheme="HTTPS" if get.get("scheme") == "HTTPS" else "HTTP",
            headers=tuple((h["name"], h["value"]) for h in handler["httpGet"].get("httpHeaders") or ()),
        )
    if "tcpSocket" in handler:
        tcp = handler["tcpSocket"]
        return TcpConnect(str(tcp.get("host") or pod_ip), port_number(tcp["port"], container))
    if "exec" in handler:
        return Execute(tuple(handler["exec"].get("command") or ()))
    if "sleep" in handler:
        return Sleep(float(handler["sleep"]["seconds"]))
    return None


def probes_of(container: Json, pod_ip: str) -> dict[ProbeKind, Probe]:
    """Return the probes of *container*. Raise KeyError where one names a port that does not exist."""
    found: dict[ProbeKind, Probe] = {}
    for kind in KINDS:
        spec = container.get(f"{kind}Probe")
        action = action_of(spec, container, pod_ip) if spec else None
        if spec and action is not None:
            grace = spec.get("terminationGracePeriodSeconds")
            found[kind] = Probe(
                kind=kind,
                action=action,
                initial_delay=float(spec.get("initialDelaySeconds") or 0),
                period=float(spec.get("periodSeconds") or 10),
                timeout=float(spec.get("timeoutSeconds") or 1),
                success_threshold=int(spec.get("successThreshold") or 1),
                failure_threshold=int(spec.get("failureThreshold") or 3),
                grace=None if grace is None else float(grace),
            )
    return found
