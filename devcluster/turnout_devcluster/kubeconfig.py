"""Kubeconfig files with the certificates inside, so that each stands alone."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import yaml

from turnout_devcluster.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_devcluster.pki import Pair


def write_kubeconfig(
    path: Path, *, cluster: str, user: str, server: str, authority: Path, pair: Pair
) -> None:
    """Write a kubeconfig at *path* (readable by its owner only) for *user*, who shows the certificate *pair*."""
    name = f"turnout-{cluster}"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": name, "cluster": {"server": server, "certificate-authority-data": _encoded(authority)}}
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": _encoded(pair.certificate),
                    "client-key-data": _encoded(pair.key),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    }
    write_atomically(path, yaml.safe_dump(document, sort_keys=False).encode())


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
