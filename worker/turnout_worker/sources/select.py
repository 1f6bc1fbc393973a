"""Which files of a source are copied."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from turnout_worker.errors import NotAModelError, NothingMatchedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from turnout_worker.sources.request import FetchRequest, Kind, RemoteFile

OTHER_WEIGHTS: Final = frozenset({".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite"})
"""Forms of weights that repositories hold beside safetensors: each is the whole model once more."""
_CONFIGURATIONS: Final[dict[Kind, tuple[str, ...]]] = {
    "model": ("config.json", "params.json"),
    "adapter": ("adapter_config.json",),
}


def selected(request: FetchRequest, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return those of *files* that *request* is about, by path.

    Raise NothingMatchedError where that is none, NotAModelError where its configuration is missing or a path leads out.
    """
    present = sorted(files, key=lambda file: file.path)
    for file in present:
        if file.path.startswith("/") or ".." in PurePosixPath(file.path).parts:
            raise NotAModelError(
                f"{request.source} has a file {file.path!r}, which leads out of its folder: nothing of it is copied"
            )
    kept = [file for file in present if _wanted(request, file.path)]
    if not request.allow and any(_suffix(file) == ".safetensors" for file in kept):
        kept = [file for file in kept if _suffix(file) not in OTHER_WEIGHTS]
    if not kept:
        raise NothingMatchedError(
            f"none of the {len(present)} files of {request.source} is copied with allow {list(request.allow)} and ignore"
            f" {list(request.ignore)}: change model.files; the source has {_some(file.path for file in present)}"
        )
    check_is_model(request, {file.path for file in kept}, left_out={file.path for file in present})
    return tuple(kept)


def check_is_model(request: FetchRequest, paths: Collection[str], *, left_out: Collection[str] = ()) -> None:
    """Raise NotAModelError where *paths*, relative to the model's folder, are not those of a model or of an adapter."""
    wanted = _CONFIGURATIONS[request.kind]
    if any(name in paths for name in wanted):
        return
    if request.kind == "model" and any(path.endswith(".gguf") for path in paths):
        return
    if any(name in left_out for name in wanted):
        raise NotAModelError(
            f"the patterns of model.files leave out {wanted[0]} of {request.source}: allow it, engines need it"
        )
    nested = sorted(path for path in paths if PurePosixPath(path).name in wanted)
    if nested and request.source.scheme in {"hf", "oci"}:
        hint = f"; there is one in {PurePosixPath(nested[0]).parent}: put the model into a place of its own, such as a bucket"
    elif nested:
        hint = f"; there is one in {PurePosixPath(nested[0]).parent}: add that folder to model.source"
    else:
        hint = f"; it has {_some(paths)}" if paths else "; it is empty"
    raise NotAModelError(f"{request.source} is no {request.kind}: it has no {wanted[0]} at its top{hint}")


def _wanted(request: FetchRequest, path: str) -> bool:
    allowed = not request.allow or any(_matches(path, pattern) for pattern in request.allow)
    return allowed and not any(_matches(path, pattern) for pattern in request.ignore)


def _matches(path: str, pattern: str) -> bool:
    # As the hub's client reads them: `*` crosses folders, and a folder stands for what lies in it.
    return fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern)


def _suffix(file: RemoteFile) -> str:
    return PurePosixPath(file.path).suffix.lower()


def _some(paths: Iterable[str], most: int = 5) -> str:
    listed = sorted(paths)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return f"{', '.join(listed[:most])}{more}"
