"""Where the API server is and how to log in: KUBECONFIG, the pod's service account, or ~/.kube/config.

The ``kubernetes`` library reads all of them, exec plugins and OIDC included; kopf's watches are given the same.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import kopf
import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from turnout_kube.kubeconfig import problem_of
from turnout_operator.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

LOAD_SECONDS: Final = 15.0
"""Longest time that reading credentials may take: a plugin may ask a server over the network."""
_DEFAULT: Final = "~/.kube/config"
_ADVICE: Final = "set KUBECONFIG, or run in a pod with a service account"


class Credentials:
    """How to log in, read afresh each time: tokens rotate, so they are kept no longer than they are accepted."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._reading: asyncio.Task[Configuration] | None = None
        """The library does not end a plugin that hangs, so at most one reading is under way; further calls wait for it."""

    async def configuration(self) -> Configuration:
        """Return where the API server is and how to log in. Raise ConfigurationError where nothing leads to one."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(_read(self._environment))
            self._reading.add_done_callback(_retrieve_exception)
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                return await asyncio.shield(self._reading)
        except TimeoutError as error:
            raise ConfigurationError(
                f"the kubeconfig gave no credentials within {LOAD_SECONDS:.0f} s: does its exec plugin hang?"
            ) from error

    async def connection(self) -> kopf.ConnectionInfo:
        """Return the same as kopf wants it. It asks again whenever they are refused. Raise ConfigurationError."""
        found = await self.configuration()
        scheme, _, token = (await found.get_api_key_with_prefix("BearerToken") or "").partition(" ")
        return kopf.ConnectionInfo(
            server=found.host,
            ca_path=found.ssl_ca_cert,
            insecure=not found.verify_ssl,
            scheme=scheme or None,
            token=token.strip() or None,
            certificate_path=found.cert_file,
            private_key_path=found.key_file,
            proxy_url=found.proxy,
            trust_env=True,
        )


async def _read(environment: Mapping[str, str]) -> Configuration:
    """Read what *environment* names. KUBECONFIG comes first: in a dev cluster it leads to the pod's own token."""
    paths = environment.get("KUBECONFIG")
    found = Configuration()
    try:
        if not paths and environment.get("KUBERNETES_SERVICE_HOST"):
            load_incluster_config(client_configuration=found)
            return found
        paths = paths or _DEFAULT
        if not _exists(paths):
            raise ConfigurationError(f"no way to the API server: there is no file {paths}; {_ADVICE}")
        await load_kube_config(paths, client_configuration=found, persist_config=False)
    except (
        ConfigException,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        yaml.YAMLError,
    ) as error:
        source = f"the kubeconfig {paths}" if paths else "the pod's service account"
        raise ConfigurationError(f"{source} cannot be used: {error}; {_ADVICE}") from error
    # kopf's connections have no such setting as tls-server-name.
    if problem := problem_of(found, paths):
        raise ConfigurationError(problem)
    return found


def _retrieve_exception(task: asyncio.Task[Configuration]) -> None:
    """Retrieve the exception of a reading without a waiting caller, or asyncio would log it."""
    if not task.cancelled():
        task.exception()


def _exists(paths: str) -> bool:
    return any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path)
