"""Writes a new cluster's folder: certificates, kubeconfigs, links to binaries, configuration."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from turnout_devcluster.components import CONTROLLER_MANAGER, SCHEDULER
from turnout_devcluster.config import store_config
from turnout_devcluster.kubeconfig import write_kubeconfig
from turnout_devcluster.pki import Authority, write_token_keys

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from turnout_devcluster.config import ClusterConfig
    from turnout_devcluster.layout import ClusterFiles


def prepare(files: ClusterFiles, config: ClusterConfig, binaries: Mapping[str, Path]) -> None:
    """Write everything that the supervisor needs; the configuration last, for it says that the rest is there."""
    for directory in (files.directory, files.pki, files.bin, files.pods, files.log("x").parent):
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
    for tool, path in binaries.items():
        (files.bin / tool).symlink_to(path)
    authority = Authority(files.pki, dt.datetime.now(dt.UTC))
    write_token_keys(files.pki)
    address = config.addresses.control_plane
    authority.issue(
        "apiserver",
        "kube-apiserver",
        hosts=(
            *("kubernetes", "kubernetes.default", "kubernetes.default.svc"),
            *("kubernetes.default.svc.cluster.local", "localhost"),
            *(address, config.addresses.kubernetes_service, "127.0.0.1"),
        ),
    )
    authority.issue("etcd", "etcd", hosts=(address,))
    authority.issue("etcd-client", "kube-apiserver")
    authority.issue("kubelet-client", "kube-apiserver-kubelet-client", groups=("system:masters",))
    # The node agent is kubelet and proxy of every node at once, and no Node authorizer separates them here.
    users = (
        ("admin", "turnout-admin", ("system:masters",), files.kubeconfig),
        ("node", "turnout-node-agent", ("system:masters",), files.node_kubeconfig),
        (
            "controller-manager",
            "system:kube-controller-manager",
            (),
            files.component_kubeconfig(CONTROLLER_MANAGER),
        ),
        ("scheduler", "system:kube-scheduler", (), files.component_kubeconfig(SCHEDULER)),
    )
    for file, user, groups, kubeconfig in users:
        pair = authority.issue(file, user, groups=groups)
        write_kubeconfig(
            kubeconfig,
            cluster=config.name,
            user=user,
            server=config.server,
            authority=authority.certificate,
            pair=pair,
        )
    store_config(files, config)
