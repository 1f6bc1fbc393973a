"""The accelerators that Turnout knows, with the figures that decisions need."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnout.terms import AcceleratorType


@dataclass(frozen=True, slots=True)
class AcceleratorSpec:
    """One accelerator, as its data sheet and its Kubernetes device plugin describe it."""

    type: AcceleratorType
    """What an LLMDeployment calls it."""
    resource: str | None
    """Extended resource that its device plugin advertises; None: pods run on any node."""
    product: str | None
    """Value of the node label ``nvidia.com/gpu.product``, set by GPU feature discovery; None: pods run on any node."""
    memory_gib: int | None
    """Memory of one accelerator, in GiB, as marketed; None: not known."""
    dense_bf16_tflops: float
    """Peak dense bf16 matrix throughput, in TFLOP/s (vendor data sheet)."""
    memory_bandwidth_gbs: float
    """Peak memory bandwidth, in GB/s (vendor data sheet)."""


PRODUCT_LABEL: Final = "nvidia.com/gpu.product"

ACCELERATORS: Final[Mapping[str, AcceleratorSpec]] = MappingProxyType(
    {
        spec.type: spec
        for spec in (
            AcceleratorSpec("H100-SXM", "nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3", 80, 989.0, 3352.0),
            AcceleratorSpec("H200-SXM", "nvidia.com/gpu", "NVIDIA-H200", 141, 989.0, 4800.0),
            AcceleratorSpec("A100-SXM-80GB", "nvidia.com/gpu", "NVIDIA-A100-SXM4-80GB", 80, 312.0, 2039.0),
            AcceleratorSpec("L40S", "nvidia.com/gpu", "NVIDIA-L40S", 48, 362.0, 864.0),
            # The node's own processor, whichever that is. The speed, which only the simulated engine reads, is an
            # assumption: some 16 cores of a server of 2024 with bf16 instructions and their share of its memory channels.
            AcceleratorSpec("CPU", None, None, None, 10.0, 100.0),
        )
    }
)
"""By the name that an LLMDeployment gives in ``accelerator.type``."""
DEVICES: Final = tuple(spec.type for spec in ACCELERATORS.values() if spec.resource is not None)
"""The types that nodes advertise."""
