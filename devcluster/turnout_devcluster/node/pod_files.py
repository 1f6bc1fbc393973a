"""What the node provides for a pod's containers: volumes, a kubeconfig with the pod's token, variables."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout import terms
from turnout_devcluster.node.attempts import write_atomically
from turnout_devcluster.node.model import Json, Refusal, container_of
from turnout_devcluster.node.mounts import link_host_path, write_volume
from turnout_devcluster.node.plan import ContainerPlan, PodFolder, plan_container
from turnout_devcluster.node.volumes import Tree, volume_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turnout_devcluster.node.api import Endpoint
    from turnout_devcluster.node.config_source import ConfigSource
    from turnout_devcluster.node.fields import PodFacts

SERVICE_ACCOUNT_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the API server has every pod that may speak to it mount its token."""


class PodFiles:
    """Writes the files of one pod into *folder*, and plans its containers."""

    def __init__(
        self, folder: PodFolder, endpoint: Endpoint, config_source: ConfigSource, state_dir: Path
    ) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._config_source = config_source
        self._state_dir = state_dir
        self._written: dict[str, Tree] = {}

    async def fill_volumes(self, facts: PodFacts) -> list[Refusal]:
        """Make the volumes hold what they should by now. Return why some cannot. Raise NodeError."""
        self._make_home()
        volumes = facts.pod["spec"].get("volumes") or ()
        if not volumes:
            return []
        objects = await self._config_source.objects(facts.pod)
        tokens = await self._config_source.tokens(facts.pod)
        problems = []
        for volume in volumes:
            if "hostPath" in volume:
                refusal = link_host_path(Path(self._folder.volume(volume["name"])), volume["hostPath"])
                problems += [refusal] if refusal else []
                continue
            files = volume_files(volume, facts, objects, tokens)
            if isinstance(files, Refusal):
                problems.append(files)
            else:
                self._fill(facts, volume["name"], files)
        return problems

    def _make_home(self) -> None:
        Path(self._folder.home).mkdir(parents=True, exist_ok=True, mode=0o700)

    def _fill(self, facts: PodFacts, volume: str, files: Tree | None) -> None:
        """Make a volume hold *files*; None is an emptyDir."""
        folder = Path(self._folder.volume(volume))
        if files is None:
            folder.mkdir(parents=True, exist_ok=True)
        elif self._written.get(volume) != files:
            write_volume(folder, files)
            if volume in _account_volumes(facts.pod) and "token" in files:
                self._write_kubeconfig(facts, volume, files)
            self._written[volume] = files

    def _write_kubeconfig(self, facts: PodFacts, volume: str, files: Tree) -> None:
        """Write what KUBECONFIG names: the pod's own token, and the API server's real address.

        The token stands there and is named as a file too: some clients read only the one, and those that read
        both follow the file, which is what is renewed.
        """
        ca = files["ca.crt"].data if "ca.crt" in files else self._endpoint.ca_pem.encode()
        cluster = {
            "server": self._endpoint.server,
            "certificate-authority-data": base64.b64encode(ca).decode(),
        }
        user = {
            "tokenFile": f"{self._folder.volume(volume)}/token",
            "token": files["token"].data.decode(),
        }
        context = {"cluster": "cluster", "user": "pod", "namespace": facts.namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": "pod", "user": user}],
            "contexts": [{"name": "pod", "context": context}],
            "current-context": "pod",
        }
        write_atomically(Path(self._folder.kubeconfig), json.dumps(config).encode())

    def _base(self, facts: PodFacts, container: str) -> dict[str, str]:
        """Return the variables that the node gives a container. Its own win over them."""
        base = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": self._folder.home,
            "HOSTNAME": facts.name,
            "LANG": "C.UTF-8",
            terms.ENV_BIND_ADDRESS: facts.pod_ip,
            "TURNOUT_DEV_CLUSTER": str(self._state_dir),
            "KUBERNETES_SERVICE_HOST": self._endpoint.host,
            "KUBERNETES_SERVICE_PORT": str(self._endpoint.port),
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self._endpoint.port),
        }
        if any(_account_mounts(container_of(facts.pod, container))):
            base["KUBECONFIG"] = self._folder.kubeconfig
        return base

    async def plan(self, facts: PodFacts, container: str) -> ContainerPlan | Refusal:
        """Return how to run *container*. Raise NodeError where the API server cannot be asked."""
        objects = await self._config_source.objects(facts.pod)
        spec = container_of(facts.pod, container)
        return plan_container(spec, facts, objects, self._base(facts, container), self._folder)


def _account_mounts(container: Json) -> Iterator[str]:
    """Return the volumes that *container* mounts where a service account's token belongs."""
    for mount in container.get("volumeMounts") or ():
        if mount["mountPath"].rstrip("/") == SERVICE_ACCOUNT_PATH:
            yield mount["name"]


def _account_volumes(pod: Json) -> frozenset[str]:
    containers = (*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"])
    return frozenset(name for container in containers for name in _account_mounts(container))
