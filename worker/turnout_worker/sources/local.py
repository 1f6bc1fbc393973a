"""Sources that are not copied: a mounted claim or image, a folder of the node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout_worker.errors import NotFoundError
from turnout_worker.sources.select import check_is_model

if TYPE_CHECKING:
    from turnout_worker.sources.request import FetchRequest

IMAGE_FOLDERS: Final = (".", "models", "model")
"""Where images keep a model: at the top, or, as KServe's model cars, in a folder of it."""


def local_folder(request: FetchRequest) -> Path:
    """Return the folder of a pvc://, oci:// or file:// source.

    Raise NotFoundError where it does not exist or cannot be read, NotAModelError where it holds no model.
    """
    if request.source.scheme == "file":
        folder = Path(request.source.path)
    elif request.mounted is None:
        raise NotFoundError(f"{request.source} is not mounted: say where with --mounted")
    else:
        # The volume's subPath is the folder in the claim, so that the mount is the model's folder.
        folder = request.mounted
    names = _names(request, folder)
    if request.source.scheme == "oci":
        for name in IMAGE_FOLDERS:
            inner = folder / name
            if inner.is_dir() and (inner / "config.json").is_file():
                return inner
    check_is_model(request, names)
    return folder


def _names(request: FetchRequest, folder: Path) -> set[str]:
    try:
        names = {each.name for each in folder.iterdir()}
    except NotADirectoryError:
        raise NotFoundError(
            f"{request.source}: {folder} is a file: name the folder that it lies in"
        ) from None
    except FileNotFoundError:
        raise NotFoundError(
            f"{request.source}: there is no folder {folder} on this node: put the model there, or correct the path"
        ) from None
    except PermissionError:
        raise NotFoundError(
            f"{request.source}: {folder} may not be read by user {os.getuid()}: give it read access"
        ) from None
    found = set(names)
    for name in names:
        inner = folder / name
        if inner.is_dir() and os.access(inner, os.R_OK | os.X_OK):
            found |= {f"{name}/{each.name}" for each in inner.iterdir()}
    return found
