"""Access to Kubernetes' API server: its address and the router's credentials.

Small on purpose: the router only follows a few collections, and a full client costs more memory than the router itself.
In a pod its service account is all there is to know. Kubeconfigs are read by the `kubernetes` library, programs that
hand out credentials included; it is imported only then, for it costs 8 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import yaml

from turnout_kube.follow import Unavailable
from turnout_router.errors import ConfigError, DiscoveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kubernetes.client.configuration import Configuration

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DEFAULT: Final = "~/.kube/config"
_LOGIN_SECONDS: Final = 15.0
"""For the credentials: a kubeconfig's program may use the network."""
_REQUEST_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to speak to it.

    `authorization` returns the field of that name, None if a certificate identifies the router. It is called each time,
    for tokens are replaced, and not on the event loop, for it may read files or run a program. It raises
    DiscoveryError or ConfigError.
    """

    server: str
    tls: ssl.SSLContext | None
    authorization: Callable[[], str | None]

    async def headers(self) -> dict[str, str]:
        """Return the header with the credentials. Raise Unavailable where there are none in time."""
        try:
            async with asyncio.timeout(_LOGIN_SECONDS):
                value = await _aside(self.authorization)
        except TimeoutError as error:
            raise Unavailable(f"no credentials within {_LOGIN_SECONDS:g} s") from error
        except DiscoveryError as error:
            raise Unavailable(str(error)) from error
        return {} if value is None else {"authorization": value}


async def _aside(function: Callable[[], str | None]) -> str | None:
    """Return what *function* does, from a thread that nothing waits for, not even the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str | None] = loop.create_future()

    def report(result: str | None, error: Exception | None) -> None:
        if done.done():
            return  # the caller no longer waits
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result: str | None = None
        failure: Exception | None = None
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(report, result, failure)

    threading.Thread(target=work, name="credentials", daemon=True).start()
    return await done


def load_access(environ: Mapping[str, str] = os.environ) -> Access:
    """Return access from KUBECONFIG, else the pod's service account, else ~/.kube/config. Raise ConfigError without any."""
    paths = environ.get("KUBECONFIG")
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if not paths and host and (_ACCOUNT / "token").exists():
        host = f"[{host}]" if ":" in host else host
        return Access(
            server=f"https://{host}:{environ.get('KUBERNETES_SERVICE_PORT', '443')}",
            tls=ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt")),
            authorization=_account_token,
        )
    if not paths and not Path(_DEFAULT).expanduser().exists():
        raise ConfigError(
            "no Kubernetes to read the fleet from: set KUBECONFIG, run in a pod with a service account, "
            "or name a file with --config"
        )
    return _Kubeconfig(paths or _DEFAULT).access()


def _account_token() -> str:
    try:
        return f"Bearer {(_ACCOUNT / 'token').read_text().strip()}"
    except OSError as error:
        raise DiscoveryError(f"the token {_ACCOUNT / 'token'} cannot be read: {error.strerror}") from error


class _Kubeconfig:
    """The files that KUBECONFIG names, read anew for each use; one at a time, because a program may hang."""

    def __init__(self, paths: str) -> None:
        self._paths = paths
        self._reading = threading.Lock()

    def access(self) -> Access:
        """Raise ConfigError where the files cannot be used."""
        found = self._read()
        return Access(found.host, self._tls(found), self._authorization)

    def _authorization(self) -> str | None:
        if not self._reading.acquire(timeout=_LOGIN_SECONDS):
            raise DiscoveryError(f"the kubeconfig {self._paths} still waits for its program's credentials")
        try:
            value: str | None = self._read().get_api_key_with_prefix("BearerToken")
        finally:
            self._reading.release()
        return value

    def _read(self) -> Configuration:
        from kubernetes.client.configuration import Configuration  # noqa: PLC0415 - see the module's docstring
        from kubernetes.config import ConfigException, load_kube_config  # noqa: PLC0415

        from turnout_kube.kubeconfig import problem_of  # noqa: PLC0415 - needed with these alone

        found = Configuration()
        try:
            load_kube_config(self._paths, client_configuration=found, persist_config=False)
        except (
            ConfigException,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            yaml.YAMLError,
        ) as error:
            raise ConfigError(f"the kubeconfig {self._paths} cannot be used: {error}") from error
        if problem := problem_of(found, self._paths):
            raise ConfigError(problem)
        return found

    def _tls(self, found: Configuration) -> ssl.SSLContext | None:
        if not found.host.startswith("https:"):
            return None
        try:
            context = ssl.create_default_context(cafile=found.ssl_ca_cert)
            if not found.verify_ssl:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if found.cert_file:
                context.load_cert_chain(found.cert_file, found.key_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the certificates of the kubeconfig {self._paths} cannot be used: {error}"
            ) from error
        return context


def new_client(access: Access) -> httpx.AsyncClient:
    """Return an HTTP client for *access*, which the caller closes."""
    return httpx.AsyncClient(
        base_url=access.server,
        verify=access.tls if access.tls is not None else False,
        timeout=httpx.Timeout(_REQUEST_SECONDS, connect=5.0),
        trust_env=False,
    )
