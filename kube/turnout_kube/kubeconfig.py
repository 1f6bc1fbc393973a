"""Why a kubeconfig that was read cannot be used. Standard library only: the caller reads it with the library it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class LoadedConfiguration(Protocol):
    """What is read of the `kubernetes` library's Configuration, blocking or asyncio."""

    @property
    def host(self) -> str:
        """URL of the API server."""

    @property
    def api_key(self) -> Mapping[str, Any]:
        """Tokens by the name of their header."""

    @property
    def cert_file(self) -> str | None:
        """The client's certificate."""

    @property
    def tls_server_name(self) -> str | None:
        """Name that the API server's certificate is checked against, where that is not its host."""


def problem_of(found: LoadedConfiguration, paths: str) -> str:
    """Return why the kubeconfig *paths*, read as *found*, cannot be used, and what to change; empty where it can."""
    if found.tls_server_name:
        return (
            f"the kubeconfig {paths} sets tls-server-name, which is not supported: "
            "give the server's address as its certificate has it"
        )
    if not found.api_key and not found.cert_file and found.host.startswith("https:"):
        return (
            f"the kubeconfig {paths} has no credentials for its current context: give its user a token, "
            "a certificate or an exec plugin (why a plugin failed is logged above)"
        )
    return ""
