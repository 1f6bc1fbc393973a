"""``python -m turnout_devcluster.vllm``: install vLLM for the CPU and make its models, as far as they are missing."""

from __future__ import annotations

import sys

from turnout_devcluster.errors import DevClusterError
from turnout_devcluster.progress import Progress
from turnout_devcluster.vllm.environment import install
from turnout_devcluster.vllm.models import ensure_model


def main() -> None:
    """Do it, or say in a sentence why it cannot be done."""
    progress = Progress()
    try:
        install(progress)
        ensure_model("tiny", progress)
        ensure_model("smollm2", progress)
    except DevClusterError as error:
        sys.exit(f"[vllm] {error}")


if __name__ == "__main__":
    main()
