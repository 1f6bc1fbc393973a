"""`turnout-worker fetch`: fills a cache, or lists what would be copied."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from turnout_worker.sources.disk import size
from turnout_worker.sources.fetch import fetch, plan
from turnout_worker.sources.options import fetch_requests

if TYPE_CHECKING:
    import argparse

    from turnout_worker.sources.request import FetchRequest
_TERMINATED: Final = 128 + signal.SIGTERM


def run(options: argparse.Namespace) -> int:
    """Fetch the model and its adapters, or list their files with --dry-run. Raise SourceError or ConfigurationError."""
    # The first process of a container ignores SIGTERM unless it says otherwise. What is on the disk is whole at any moment.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))
    model, adapters = fetch_requests(options)
    for request in (model, *adapters.values()):
        if options.dry_run and request.source.downloaded:
            _list(request)
        else:
            sys.stdout.write(f"{request.source}: {fetch(request)}\n")
    return 0


def _list(request: FetchRequest) -> None:
    listing = plan(request)
    lines = [f"{file.size:>16,}  {file.path}" for file in listing.files]
    at = f" at {listing.version}" if listing.version else ""
    lines.append(
        f"{listing.size:>16,}  bytes ({size(listing.size)}) in {len(listing.files)} files of {request.source}{at}, to be copied into"
        f" {request.folder}"
    )
    sys.stdout.write("\n".join(lines) + "\n")
