"""Asking the routers' admin ports, wherever they are: by URL, or in the cluster that kubectl speaks to.

A pod is asked through `kubectl port-forward`, so that it need not be reachable from here (the API server's proxy would
not do: it passes no token on); where its address is this machine's own (a dev cluster), it is asked directly. The
token that a pod wants is read from the Secret that the pod mounts, with the rights of kubectl's user.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import ipaddress
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

import httpx
import orjson

from turnout import terms
from turnout_devcluster.complaints import explained
from turnout_devcluster.layout import cache_root

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

SECONDS: Final = 10.0
"""How long one router, or kubectl, may take to answer."""
SELECTOR: Final = "app.kubernetes.io/name=turnout,app.kubernetes.io/component=router"
TOKEN_VOLUME: Final = "admin-token"  # noqa: S105 - the name of a volume
"""The volume of a router's pod that holds what its admin port asks for."""
_TOKEN_KEY: Final = "token"  # noqa: S105 - the name of a key
_FORWARDING: Final = re.compile(rb"Forwarding from 127\.0\.0\.1:([0-9]+) ")
_CRD: Final = f"llmdeployments.{terms.GROUP}"
_NOT_FOUND: Final = 404
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_OK: Final = 200


class RouterError(Exception):
    """No router could be asked; the text says what to do."""


class Router(Protocol):
    """One router's admin port."""

    @property
    def name(self) -> str:
        """What people call it."""

    def get(self, path: str) -> dict[str, Any] | None:
        """Return the JSON object under *path*, None where there is none. Raise RouterError where it fails."""


@dataclass(frozen=True, slots=True)
class RouterByUrl:
    """A router whose admin port is reachable from here. *label* is what people call it, where that is not its URL."""

    url: str
    token: str | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """Its label, or its URL."""
        return self.label or self.url

    def get(self, path: str) -> dict[str, Any] | None:
        """Ask it."""
        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        try:
            answer = httpx.get(f"{self.url.rstrip('/')}{path}", timeout=SECONDS, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RouterError(
                f"{self.name} cannot be asked ({error}): give a router's admin port, such as "
                f"http://127.0.0.1:{terms.ROUTER_ADMIN_PORT}"
            ) from error
        if answer.status_code == _NOT_FOUND:
            return None
        if answer.status_code == _UNAUTHORIZED:
            what = "asks for its admin token" if self.token is None else "does not know this admin token"
            raise RouterError(
                f"{self.name} {what}: give --token-file a file with the token of its --admin-token-file (the chart's is "
                "the key `token` of the Secret RELEASE-router-admin)"
            )
        if answer.status_code == _FORBIDDEN:
            raise RouterError(
                f"{self.name} answers this to loopback alone: leave --admin out to ask through kubectl, or "
                f"forward the port: kubectl port-forward POD {terms.ROUTER_ADMIN_PORT}"
            )
        if answer.status_code != _OK:
            raise RouterError(f"{self.name} answered {answer.status_code}: {answer.text.strip()[:200]}")
        return _object(self.name, answer.content)


@dataclass(frozen=True, slots=True)
class RouterPod:
    """A router that is asked through a port that kubectl forwards."""

    kubectl: Kubectl
    namespace: str
    pod: str
    token: str | None = None

    @property
    def name(self) -> str:
        """Namespace and name of the pod."""
        return f"{self.namespace}/{self.pod}"

    def get(self, path: str) -> dict[str, Any] | None:
        """Ask it."""
        with self.kubectl.forwarding(self.namespace, self.pod, terms.ROUTER_ADMIN_PORT) as port:
            return RouterByUrl(f"http://127.0.0.1:{port}", self.token, self.name).get(path)


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
            raise RouterError(
                f"{explained(said, self._kubeconfig)}. Or give --admin URL of a router's admin port."
            )
        return done.stdout

    @contextlib.contextmanager
    def forwarding(self, namespace: str, pod: str, port: int) -> Generator[int]:
        """Forward a port of this machine to *port* of *pod* while the context lasts; yield it. Raise RouterError."""
        command = [self.program, *self.arguments, "--namespace", namespace, "port-forward"]
        command += ["--address", "127.0.0.1", f"pod/{pod}", f":{port}"]
        with (
            tempfile.TemporaryFile() as complaints,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, bufsize=0) as process,
        ):
            try:
                local = _forwarded_port(process)
                if local is None:
                    process.kill()
                    process.wait()
                    complaints.seek(0)
                    said = complaints.read().decode(errors="replace").strip()[-500:]
                    raise RouterError(
                        f"kubectl cannot forward port {port} of {namespace}/{pod}: {said or 'it says nothing'}\n"
                        "Forwarding needs the right to create pods/portforward; where another way leads to the port, give "
                        "--admin URL"
                    )
                yield local
            finally:
                process.kill()


def _forwarded_port(process: subprocess.Popen[bytes]) -> int | None:
    """Return the port that kubectl says it forwards, None where it ends or says nothing in time."""
    said, out, deadline = b"", process.stdout, time.monotonic() + SECONDS
    while out is not None and (left := deadline - time.monotonic()) > 0:
        if not select.select([out], [], [], left)[0]:
            return None
        piece = out.read(4096)
        if not piece:
            return None
        said += piece
        found = _FORWARDING.search(said)
        if found is not None:
            return int(found[1])
    return None


def find_routers(
    admin: Sequence[str],
    namespace: str | None,
    kubectl_arguments: Sequence[str] = (),
    token_file: Path | None = None,
) -> list[Router]:
    """Return the routers at the URLs *admin*, or where there are none, those of the cluster. Raise RouterError.

    They are shown the token in *token_file*; without one, those of the cluster are shown what their pods mount.
    """
    token = None if token_file is None else _token_in(token_file)
    if admin:
        return [RouterByUrl(url, token) for url in admin]
    kubectl = Kubectl.find(kubectl_arguments)
    scope = ["--all-namespaces"] if namespace is None else ["--namespace", namespace]
    listed = _object(
        "kubectl", kubectl.run("get", "pods", *scope, "--selector", SELECTOR, "--output", "json")
    )
    tokens: dict[tuple[str, str, str], str] = {}
    routers: list[Router] = []
    for pod in listed.get("items", []):
        status, meta = pod.get("status", {}), pod["metadata"]
        address = status.get("podIP")
        if status.get("phase") != "Running" or not address:
            continue
        own = token
        source = _secret_of(pod)
        if own is None and source is not None:
            where = (meta["namespace"], *source)
            if where not in tokens:
                tokens[where] = _token_of_secret(kubectl, *where)
            own = tokens[where]
        if ipaddress.ip_address(address).is_loopback:
            routers.append(RouterByUrl(f"http://{address}:{terms.ROUTER_ADMIN_PORT}", own))
        else:
            routers.append(RouterPod(kubectl, meta["namespace"], meta["name"], own))
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
        installed = b"unknown"  # without the right to read CRDs the user may still have the right cluster
    if not installed:
        return (
            "Turnout is not installed in this cluster (it has no "
            f"{_CRD}): install the chart, or choose another cluster with --context or --kubeconfig"
        )
    return f"no router runs in {where} (pods with {SELECTOR}): give --admin URL of one that runs elsewhere"


def _secret_of(pod: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return name and key of the Secret that holds the token of *pod*, None where it mounts none."""
    for volume in pod.get("spec", {}).get("volumes") or ():
        secret = volume.get("secret") if volume.get("name") == TOKEN_VOLUME else None
        if secret:
            items = secret.get("items") or ({"key": _TOKEN_KEY},)
            return secret["secretName"], items[0]["key"]
    return None


def _token_of_secret(kubectl: Kubectl, namespace: str, name: str, key: str) -> str:
    """Return the token in a Secret. Raise RouterError where kubectl's user may not read it, or it holds none."""
    try:
        found = _object(
            "kubectl", kubectl.run("get", "secret", name, "--namespace", namespace, "--output", "json")
        )
    except RouterError as error:
        raise RouterError(
            f"{error}\nThe routers' admin token is in the Secret {namespace}/{name}: ask for the right to get it, or give "
            "--token-file"
        ) from error
    try:
        return base64.b64decode((found.get("data") or {})[key], validate=True).decode().strip()
    except (KeyError, TypeError, binascii.Error, UnicodeDecodeError) as error:
        raise RouterError(
            f"the Secret {namespace}/{name} holds no admin token under the key {key!r}"
        ) from error


def _token_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RouterError(f"the token file {path} cannot be read: {error}") from error


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
