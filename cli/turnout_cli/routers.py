"""Asking the routers' admin ports, wherever they are: by URL, or in the cluster that kubectl speaks to.

A pod is asked through the API server's proxy, so that it need not be reachable from here; where its address is this
machine's own (a dev cluster), it is asked directly, for the API server refuses to proxy to such.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

import httpx
import orjson

from turnout.api import names
from turnout_devcluster.complaints import explained
from turnout_devcluster.layout import cache_root

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS: Final = 10.0
"""How long one router, or kubectl, may take to answer."""
SELECTOR: Final = "app.kubernetes.io/name=turnout,app.kubernetes.io/component=router"
_CRD: Final = f"llmdeployments.{names.GROUP}"
_NOT_FOUND: Final = 404
_OK: Final = 200


class RouterError(Exception):
    """No router could be asked; the text says what to do."""


class TurnedAwayError(RouterError):
    """The API server answered that something is not there, or may not be asked for."""


class Router(Protocol):
    """One router's admin port."""

    @property
    def name(self) -> str:
        """What people call it."""

    def get(self, path: str) -> dict[str, Any] | None:
        """Return the JSON object under *path*, None where there is none. Raise RouterError where it fails."""


@dataclass(frozen=True, slots=True)
class RouterByUrl:
    """A router whose admin port is reachable from here."""

    url: str

    @property
    def name(self) -> str:
        """Its URL."""
        return self.url

    def get(self, path: str) -> dict[str, Any] | None:
        """Ask it."""
        try:
            answer = httpx.get(f"{self.url.rstrip('/')}{path}", timeout=SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RouterError(
                f"{self.url} cannot be asked ({error}): give a router's admin port, such as "
                f"http://127.0.0.1:{names.ROUTER_ADMIN_PORT}"
            ) from error
        if answer.status_code == _NOT_FOUND:
            return None
        if answer.status_code != _OK:
            raise RouterError(f"{self.url} answered {answer.status_code}: {answer.text.strip()[:200]}")
        return _object(self.url, answer.content)


@dataclass(frozen=True, slots=True)
class RouterPod:
    """A router that is asked through the API server, by kubectl."""

    kubectl: Kubectl
    namespace: str
    pod: str

    @property
    def name(self) -> str:
        """Namespace and name of the pod."""
        return f"{self.namespace}/{self.pod}"

    def get(self, path: str) -> dict[str, Any] | None:
        """Ask it."""
        port = names.ROUTER_ADMIN_PORT
        try:
            said = self.kubectl.run(
                "get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{self.pod}:{port}/proxy{path}"
            )
        except TurnedAwayError as error:
            if "(NotFound)" in str(error):
                return None
            raise RouterError(
                f"{error} Or forward the port: kubectl -n {self.namespace} port-forward {self.pod} {port}, and give "
                f"--admin http://127.0.0.1:{port}"
            ) from error
        return _object(self.name, said)


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl with the arguments that choose a cluster."""

    program: str
    arguments: tuple[str, ...] = ()

    @classmethod
    def find(cls, arguments: Sequence[str]) -> Kubectl:
        """Return the kubectl on PATH, or the one of the dev cluster. Raise RouterError where there is neither."""
        program = shutil.which("kubectl")
        if program is None:
            built = sorted(cache_root().glob("controlplane/*/kubectl"), key=lambda path: path.stat().st_mtime)
            if not built:
                raise RouterError(
                    "kubectl is not installed: install it, or give --admin URL of a router's admin port"
                )
            program = str(built[-1])
        return cls(program, tuple(arguments))

    @property
    def _kubeconfig(self) -> str | None:
        given = [value for flag, value in pairwise(self.arguments) if flag == "--kubeconfig"]
        return given[-1] if given else os.environ.get("KUBECONFIG")

    def run(self, *arguments: str) -> bytes:
        """Return what it wrote. Raise RouterError with what it complains of."""
        command = [self.program, *self.arguments, f"--request-timeout={SECONDS:g}s", *arguments]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=3 * SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RouterError(f"kubectl did not end within {3 * SECONDS:g} s: {' '.join(command)}") from error
        except OSError as error:
            raise RouterError(
                f"{self.program} cannot be run ({error.strerror}): install kubectl, or give --admin URL of a router's "
                "admin port"
            ) from error
        if done.returncode:
            said = done.stderr.decode(errors="replace")
            kind = TurnedAwayError if "(NotFound)" in said or "(Forbidden)" in said else RouterError
            raise kind(f"{explained(said, self._kubeconfig)}. Or give --admin URL of a router's admin port.")
        return done.stdout


def find_routers(
    admin: Sequence[str], namespace: str | None, kubectl_arguments: Sequence[str] = ()
) -> list[Router]:
    """Return the routers at the URLs *admin*, or where there are none, those of the cluster. Raise RouterError."""
    if admin:
        return [RouterByUrl(url) for url in admin]
    kubectl = Kubectl.find(kubectl_arguments)
    scope = ["--all-namespaces"] if namespace is None else ["--namespace", namespace]
    listed = _object(
        "kubectl", kubectl.run("get", "pods", *scope, "--selector", SELECTOR, "--output", "json")
    )
    routers: list[Router] = []
    for pod in listed.get("items", []):
        status, meta = pod.get("status", {}), pod["metadata"]
        address = status.get("podIP")
        if status.get("phase") != "Running" or not address:
            continue
        if ipaddress.ip_address(address).is_loopback:
            routers.append(RouterByUrl(f"http://{address}:{names.ROUTER_ADMIN_PORT}"))
        else:
            routers.append(RouterPod(kubectl, meta["namespace"], meta["name"]))
    if not routers:
        raise RouterError(_none_found(kubectl, namespace, listed.get("items", [])))
    return routers


def _none_found(kubectl: Kubectl, namespace: str | None, pods: Sequence[dict[str, Any]]) -> str:
    """Return why there is no router to ask: what is there runs not yet, or nothing is installed, or elsewhere."""
    where = "any namespace" if namespace is None else f"namespace {namespace}"
    if pods:
        meta, phase = pods[0]["metadata"], pods[0].get("status", {}).get("phase", "unknown")
        return (
            f"no router runs in {where}: {meta['namespace']}/{meta['name']} is {phase}; "
            f"see: kubectl -n {meta['namespace']} describe pod {meta['name']}"
        )
    try:
        installed = kubectl.run("get", "crd", _CRD, "--ignore-not-found", "--output", "name").strip()
    except RouterError:
        installed = b"unknown"  # who may not look at CRDs can still be right about the cluster
    if not installed:
        return (
            "Turnout is not installed in this cluster (it has no "
            f"{_CRD}): install the chart, or choose another cluster with --context or --kubeconfig"
        )
    return f"no router runs in {where} (pods with {SELECTOR}): give --admin URL of one that runs elsewhere"


def decision_path(request_id: str) -> str:
    """Return the admin path of a request's decision."""
    return f"/admin/decisions/{quote(request_id, safe='')}"


def _object(name: str, body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise RouterError(f"{name} answers, but not as a router's admin port does")
    return value
