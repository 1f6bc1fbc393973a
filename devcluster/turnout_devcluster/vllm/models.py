"""Small models for vLLM on a CPU, made on this machine and cached beside the built binaries.

The result is ``$TURNOUT_CACHE/models/NAME-KEY/``, where KEY covers the program that writes it and the versions it is
written with. It is written under another name and renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final, Literal

from turnout_devcluster.errors import BuildError
from turnout_devcluster.files import exclusive
from turnout_devcluster.layout import cache_root
from turnout_devcluster.processes import dying_with_parent
from turnout_devcluster.vllm.environment import checkout, python

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_devcluster.progress import Progress

Model = Literal["tiny", "smollm2"]
"""`tiny`: 2 random layers, 512 tokens, 2048 of context, a LoRA adapter in ``adapter``. `smollm2`: SmolLM2-135M-Instruct."""

_SECONDS: Final = 1200.0
_KEY_DIGITS: Final = 12
_PLAN: Final[dict[Model, str]] = {
    "tiny": "a few seconds",
    "smollm2": "about a minute, 270 MB",
}


def ensure_model(model: Model, progress: Progress) -> Path:
    """Return the folder of *model*, which is made first where it is missing.

    :raises ToolchainError: when there is no vLLM.
    :raises BuildError: when the model cannot be made; the message ends with the reason.
    """
    root = checkout()
    program = root / "devcluster" / "vllm-cpu" / "make_model.py"
    interpreter = python()
    models = cache_root() / "models"
    digest = hashlib.sha256(program.read_bytes() + (root / "requirements-vllm.lock").read_bytes())
    target = models / f"{model}-{digest.hexdigest()[:_KEY_DIGITS]}"
    if target.is_dir():
        return target
    lock = exclusive(
        models / f".{target.name}.lock",
        deadline_seconds=_SECONDS,
        waiting=lambda: progress.line(f"waiting: another process makes the model {model}"),
    )
    with lock:
        if not target.is_dir():
            progress.line(f"making the model {model}: {_PLAN[model]}, once, then cached in {target}")
            _make(interpreter, program, model, target)
            for older in models.glob(f"{model}-*"):
                if older != target:
                    shutil.rmtree(older, ignore_errors=True)
    return target


def _make(interpreter: Path, program: Path, model: Model, target: Path) -> None:
    for leftover in target.parent.glob(f".{target.name}.making-*"):
        shutil.rmtree(leftover)
    making = target.with_name(f".{target.name}.making-{os.getpid()}")
    making.mkdir()
    try:
        subprocess.run(
            [str(interpreter), str(program), model, str(making)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            preexec_fn=dying_with_parent(),
        )
        making.rename(target)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()[-2000:]
        raise BuildError(f"The model {model} could not be made:\n{said}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
