"""Which accelerators the pod has, asked of NVIDIA's management library in a process of its own.

Run as ``python -I -S accelerators.py``: prints a JSON list. NVML neither initializes CUDA nor takes memory of the accelerator,
but a driver in trouble may block its caller: so the worker starts this as a process that it can kill.
"""

from __future__ import annotations

import ctypes
import json
import sys

_LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class NvmlError(Exception):
    """NVML reports an error."""


def _check(what: str, status: int) -> None:
    if status:
        raise NvmlError(f"{what} returned {status}")


def accelerators(library: str = _LIBRARY) -> list[dict[str, object]]:
    """Return the accelerators that NVML lists; none without the library. Raise NvmlError where it fails."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return []  # no driver of NVIDIA's: a worker on CPUs
    _check("nvmlInit_v2", nvml.nvmlInit_v2())
    try:
        count = ctypes.c_uint()
        _check("nvmlDeviceGetCount_v2", nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        return [_one(nvml, index) for index in range(count.value)]
    finally:
        nvml.nvmlShutdown()


def _one(nvml: ctypes.CDLL, index: int) -> dict[str, object]:
    device = ctypes.c_void_p()
    _check("nvmlDeviceGetHandleByIndex_v2", nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check("nvmlDeviceGetName", nvml.nvmlDeviceGetName(device, name, _NAME_BYTES))
    memory = _Memory()
    _check("nvmlDeviceGetMemoryInfo", nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)))
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(
        "nvmlDeviceGetCudaComputeCapability",
        nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)),
    )
    return {
        "name": name.value.decode(errors="replace"),
        "memory_bytes": memory.total,
        "free_bytes": memory.free,
        "compute_capability": [major.value, minor.value],
    }


def main() -> int:
    """Print what there is; status 1, and why on stderr, where that cannot be said."""
    try:
        found = accelerators()
    except (NvmlError, AttributeError) as error:
        sys.stderr.write(f"accelerators are unknown: {error}\n")
        return 1
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
