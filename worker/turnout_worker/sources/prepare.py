"""``python -m turnout_worker.sources.prepare``: brings a model and its adapters here for a worker that starts an engine.

A process of its own: the worker that waits for it stays small, runs no threads of a download, and can end it at any moment.
It takes the flags of `turnout-worker serve`, logs to stderr, and writes one line of JSON to stdout, which
`turnout_worker.supervise.model.prepared` reads: the folders, or with exit status 3 the reason and the sentence.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import TYPE_CHECKING

from turnout_worker.errors import SourceError
from turnout_worker.sources.fetch import fetch
from turnout_worker.sources.options import add_source_options, fetch_requests

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Do it. Returns the exit status. Raise ConfigurationError for flags that cannot work."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_source_options(parser)
    options, _ = parser.parse_known_args(arguments)  # the rest is for the worker
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        model, adapters = fetch_requests(options)
        answer = {
            "model": str(fetch(model)),
            "adapters": {name: str(fetch(request)) for name, request in adapters.items()},
        }
        status = 0
    except SourceError as error:
        answer, status = {"reason": error.reason, "message": str(error)}, 3
    sys.stdout.write(json.dumps(answer) + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
