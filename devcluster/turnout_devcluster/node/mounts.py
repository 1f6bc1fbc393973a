"""A pod's volumes and mounts as folders, swapped in one step when their content changes."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from turnout_devcluster.node.model import Json, Refusal
from turnout_devcluster.node.volumes import File, Tree

if TYPE_CHECKING:
    from turnout_devcluster.node.plan import Mount

DATA = "..data"


def write_volume(folder: Path, files: Tree) -> bool:
    """Make *folder* hold exactly *files*. Return whether anything changed.

    As the kubelet does it: the files lie in a folder of their own behind the link ``..data``, which is
    renamed over the old one, so that readers see either all old files or all new ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / DATA
    if data.is_symlink() and _read(data) == dict(files):
        return False
    fresh = folder / f"..{secrets.token_hex(8)}"
    fresh.mkdir(mode=0o755)
    for name, file in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(file.mode)
    old = data.readlink() if data.is_symlink() else None
    link = folder / f"{DATA}_tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.replace(data)
    tops = {name.split("/", 1)[0] for name in files}
    for top in tops:
        visible = folder / top
        if not visible.is_symlink():
            visible.symlink_to(f"{DATA}/{top}")
    for visible in folder.iterdir():
        if (
            visible.is_symlink()
            and visible.name not in tops
            and str(visible.readlink()).startswith(f"{DATA}/")
        ):
            visible.unlink()
    if old is not None:
        shutil.rmtree(folder / old, ignore_errors=True)
    return True


def link_host_path(volume: Path, source: Json) -> Refusal | None:
    """Make the folder *volume* lead to the folder of this machine that a hostPath names. Return why it cannot."""
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind not in {"", "Directory", "DirectoryOrCreate"}:
        return Refusal(
            "FailedMount", f"hostPath type {kind}: the dev cluster has only folders, use Directory"
        )
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    if not path.is_dir():
        return Refusal("FailedMount", f"hostPath type check failed: {path} is not a directory: make it")
    if not volume.is_symlink():
        volume.parent.mkdir(parents=True, exist_ok=True)
        volume.symlink_to(path)
    return None


def _read(data: Path) -> dict[str, File]:
    found = {}
    for base, _, names in os.walk(data):
        for name in names:
            path = Path(base) / name
            found[str(path.relative_to(data))] = File(path.read_bytes(), path.stat().st_mode & 0o777)
    return found


def make_mounts(root: Path, mounts: tuple[Mount, ...]) -> None:
    """Make each mount below *root* a link into its volume. Parents come before what lies in them."""
    root.mkdir(parents=True, exist_ok=True)
    for mount in mounts:
        source = Path(mount.source)
        if mount.is_sub_path and not source.exists():
            source.mkdir(parents=True)
        link = root / mount.path.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        elif link.is_dir():
            link.rmdir()  # an empty one, made as parent of a mount of an earlier start
        link.symlink_to(source)
