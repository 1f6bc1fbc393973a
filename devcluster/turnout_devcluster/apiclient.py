"""The few questions that the lifecycle asks the API server, over the standard library."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from turnout_devcluster.config import ClusterConfig
    from turnout_devcluster.layout import ClusterFiles

_TIMEOUT_SECONDS: Final = 5.0


def get(config: ClusterConfig, files: ClusterFiles, path: str) -> tuple[int, bytes]:
    """GET *path* as the cluster's administrator: status and body.

    :raises OSError: when the API server cannot be reached or does not speak HTTP.
    """
    context = ssl.create_default_context(cafile=str(files.pki / "ca.crt"))
    context.load_cert_chain(files.pki / "admin.crt", files.pki / "admin.key")
    connection = http.client.HTTPSConnection(
        config.addresses.control_plane, config.ports.api, timeout=_TIMEOUT_SECONDS, context=context
    )
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(f"the API server did not answer in HTTP: {error!r}") from error
    finally:
        connection.close()


def is_ready(config: ClusterConfig, files: ClusterFiles) -> bool:
    """Whether /readyz answers 200."""
    try:
        return get(config, files, "/readyz")[0] == http.client.OK
    except OSError:
        return False


def has_default_account(config: ClusterConfig, files: ClusterFiles) -> bool:
    """Whether pods can be created in the namespace ``default``: its service account is there."""
    try:
        status, _ = get(config, files, "/api/v1/namespaces/default/serviceaccounts/default")
    except OSError:
        return False
    return status == http.client.OK


def node_readiness(config: ClusterConfig, files: ClusterFiles) -> dict[str, bool]:
    """Name of each node to whether it is Ready; empty when the API server is not there."""
    try:
        status, body = get(config, files, "/api/v1/nodes")
    except OSError:
        return {}
    if status != http.client.OK:
        return {}
    nodes: list[dict[str, Any]] = json.loads(body)["items"]
    return {node["metadata"]["name"]: is_ready_node(node) for node in nodes}


def is_ready_node(node: dict[str, Any]) -> bool:
    """Whether the Ready condition of a Node object is True."""
    conditions = node.get("status", {}).get("conditions", [])
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)
