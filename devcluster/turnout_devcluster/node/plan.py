"""A container as a process: its arguments, environment, folder and mounts, or why it cannot be one.

What has no meaning for a local process is accepted and has no effect: image, imagePullPolicy,
securityContext (processes run as the user who started the cluster), resource limits (only the
scheduler counts them), stdin, tty, hostname, dnsPolicy and hostAliases. What would change what a pod
does and cannot be given is refused by `refused`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from turnout_devcluster.node.environment import Objects, environment
from turnout_devcluster.node.model import Json, Refusal
from turnout_devcluster.node.references import Rewriter, expand
from turnout_devcluster.node.volumes import refused_volumes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from turnout_devcluster.node.fields import PodFacts

NO_COMMAND = "the dev cluster pulls no images: say the command"


@dataclass(frozen=True, slots=True)
class Mount:
    """A path below the container's root that leads into a volume."""

    path: str
    """As the container names it, absolute."""
    source: str
    """The path in the pod's folder that it leads to."""
    is_sub_path: bool
    """Whether *source* is a part of the volume, to be made as a folder where it is missing."""


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """What to run."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    mounts: tuple[Mount, ...]
    rewrite: Rewriter
    """Also for what exec probes and hooks name."""


@dataclass(frozen=True, slots=True)
class PodFolder:
    """Where the files of a pod lie."""

    path: str

    def root(self, container: str) -> str:
        """``TURNOUT_POD_ROOT`` of *container*: its mounts lie below it."""
        return f"{self.path}/root/{container}"

    def volume(self, name: str) -> str:
        """Return the folder of a volume."""
        return f"{self.path}/volumes/{name}"

    @property
    def home(self) -> str:
        """HOME of the containers."""
        return f"{self.path}/home"

    @property
    def kubeconfig(self) -> str:
        """KUBECONFIG of the containers."""
        return f"{self.path}/kubeconfig"


def refused(pod: Json) -> Iterator[Refusal]:
    """Say what *pod* asks as a whole that this node cannot give."""
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield Refusal(
                "FailedCreatePodSandBox", f"{field} is not supported in the dev cluster: leave it out"
            )
    yield from refused_volumes(pod)
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        name = container["name"]
        if container.get("volumeDevices"):
            yield Refusal(
                "FailedMount", f"container {name}: the dev cluster has no block devices, use volumeMounts"
            )
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "grpc" in (container.get(kind) or {}):
                yield Refusal(
                    "FailedCreatePodContainer",
                    f"container {name}: {kind} by gRPC is not supported here: use httpGet, tcpSocket or exec",
                )
        if (container.get("lifecycle") or {}).get("stopSignal") not in {None, "SIGTERM"}:
            yield Refusal(
                "FailedCreatePodContainer",
                f"container {name}: only SIGTERM is a stopSignal here, leave it out",
            )
        for mount in container.get("volumeMounts") or ():
            if PurePosixPath(mount["mountPath"]) == PurePosixPath("/"):
                yield Refusal(
                    "FailedMount", f"container {name}: nothing can be mounted at /, name a folder below it"
                )


def _mounts(container: Json, env: Mapping[str, str], folder: PodFolder) -> tuple[Mount, ...] | Refusal:
    mounts = []
    for mount in container.get("volumeMounts") or ():
        sub_path = mount.get("subPath") or expand(mount.get("subPathExpr", ""), env)
        relative = PurePosixPath(sub_path or ".")
        path = PurePosixPath("/") / mount["mountPath"]
        if relative.is_absolute() or ".." in relative.parts or ".." in path.parts:
            return Refusal(
                "CreateContainerConfigError",
                f"the mount at {path} has a path that leaves its volume: write it without '..' and a leading '/'",
            )
        mounts.append(Mount(str(path), f"{folder.volume(mount['name'])}/{relative}", bool(sub_path)))
    return tuple(sorted(mounts, key=lambda m: (m.path.count("/"), m.path)))


def plan_container(
    container: Json, facts: PodFacts, objects: Objects, base: Mapping[str, str], folder: PodFolder
) -> ContainerPlan | Refusal:
    """Return how to run *container*, whose node gives it the variables *base*."""
    command = [*(container.get("command") or ()), *(container.get("args") or ())]
    if not container.get("command"):
        return Refusal("CreateContainerConfigError", f"container {container['name']}: {NO_COMMAND}")
    root = folder.root(container["name"])
    env = environment(container, facts, objects, {**base, "TURNOUT_POD_ROOT": root})
    if isinstance(env, Refusal):
        return env
    mounts = _mounts(container, env, folder)
    if isinstance(mounts, Refusal):
        return mounts
    rewrite = Rewriter(root, tuple(m.path for m in mounts))
    cwd = container.get("workingDir")
    moved = rewrite(cwd) if cwd else root
    if cwd and moved == cwd:
        return Refusal(
            "CreateContainerConfigError",
            f"container {container['name']}: workingDir {cwd} is in an image, and the dev cluster has none: "
            "leave it out, or mount a volume there",
        )
    # Base values are the node's own paths already; env is rewritten as a whole because no path of the
    # node's begins with a mount path at a boundary unless the container itself said so.
    moved_env = {k: v if base.get(k) == v else rewrite(v) for k, v in env.items()}
    argv = tuple(rewrite(expand(word, env)) for word in command)
    return ContainerPlan(argv, moved_env, moved, mounts, rewrite)
