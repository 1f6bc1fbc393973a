"""Flags that say which model and adapters are fetched, and where to: those of `turnout-worker fetch` and of a real engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from turnout.sources import (
    DEFAULT_REVISION,
    InvalidSourceError,
    Source,
    is_endpoint,
    is_revision,
    parse_source,
)
from turnout_runtime.options import read_positive, read_seconds
from turnout_worker.errors import ConfigurationError
from turnout_worker.sources.request import FetchRequest

if TYPE_CHECKING:
    import argparse

CACHE: Final = "/var/cache/turnout"
MODEL: Final = "model"
ADAPTERS: Final = "adapters"
"""Folders below --mounted: of the model, and of the adapters by name."""


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `fetch_requests` reads."""
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="SOURCE",
        help="hf://ORGANIZATION/NAME, pvc://CLAIM/FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, oci://IMAGE or file:///FOLDER",
    )
    add(
        "--revision", default=DEFAULT_REVISION, metavar="NAME", help="branch, tag or commit of a hf:// source"
    )
    add("--endpoint", metavar="URL", help="a mirror of the hub, or the S3 server; $HF_ENDPOINT works as well")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="copy only files of the model that match, such as '*.safetensors'; may be repeated",
    )
    add(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="copy no file of the model that matches; may be repeated",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="a LoRA adapter that clients call by NAME; may be repeated",
    )
    add(
        "--adapter-revision",
        action="append",
        default=[],
        metavar="NAME=REVISION",
        help="branch, tag or commit of that adapter's hf:// source; may be repeated",
    )
    add("--cache", type=Path, default=Path(CACHE), metavar="DIR", help="where files are copied to")
    add(
        "--cache-limit",
        type=read_positive,
        metavar="BYTES",
        help="most bytes that it may hold, where its file system does not say so",
    )
    add(
        "--mounted",
        type=Path,
        metavar="DIR",
        help="where pvc:// and oci:// sources are mounted: the model at DIR/model, adapters at DIR/adapters/NAME",
    )
    add(
        "--lock-seconds",
        type=read_seconds,
        default=4 * 3600.0,
        metavar="SECONDS",
        help="how long to wait for another process that copies the same files",
    )
    add(
        "--report-seconds",
        type=read_seconds,
        default=5.0,
        metavar="SECONDS",
        help="between two lines of progress in the log",
    )


def fetch_requests(options: argparse.Namespace) -> tuple[FetchRequest, dict[str, FetchRequest]]:
    """Return what is asked for: the model, and the adapters by name. Raise ConfigurationError, saying what to write instead."""
    source = _source("--model", options.model)
    if options.endpoint is not None and not is_endpoint(options.endpoint):
        raise ConfigurationError(
            f"--endpoint {options.endpoint!r} is no URL: write one such as https://hub.example.com"
        )
    model = FetchRequest(
        source,
        options.cache,
        revision=_revision("--revision", options.revision, source),
        endpoint=options.endpoint,
        allow=tuple(options.allow),
        ignore=tuple(options.ignore),
        limit_bytes=options.cache_limit,
        mounted=options.mounted and options.mounted / MODEL,
        lock_seconds=options.lock_seconds,
        report_seconds=options.report_seconds,
    )
    sources = {
        name: _source("--adapter", text) for name, text in _named("--adapter", options.adapter).items()
    }
    revisions = _named("--adapter-revision", options.adapter_revision)
    if unknown := sorted(revisions.keys() - sources):
        raise ConfigurationError(
            f"--adapter-revision: there is no adapter {unknown[0]}: add --adapter, or remove it"
        )
    adapters = {
        name: FetchRequest(
            each,
            options.cache,
            kind="adapter",
            revision=_revision("--adapter-revision", revisions.get(name, DEFAULT_REVISION), each),
            # The hub's mirror is no S3 server, nor the other way round.
            endpoint=options.endpoint if each.scheme == source.scheme else None,
            limit_bytes=options.cache_limit,
            mounted=options.mounted and options.mounted / ADAPTERS / name,
            lock_seconds=options.lock_seconds,
            report_seconds=options.report_seconds,
        )
        for name, each in sources.items()
    }
    return model, adapters


def _source(flag: str, text: str) -> Source:
    # A folder may stand for itself where a worker is started by hand.
    try:
        return parse_source(f"file://{text}" if text.startswith("/") else text)
    except InvalidSourceError as error:
        raise ConfigurationError(f"{flag} {error}") from None


def _revision(flag: str, text: str, source: Source) -> str:
    if not is_revision(text):
        raise ConfigurationError(
            f"{flag} {text!r} is no revision: write a branch, a tag or a commit, such as main"
        )
    if source.scheme != "hf" and text != DEFAULT_REVISION:
        raise ConfigurationError(f"{flag} {text} has no effect on {source}: remove it, or use hf://")
    return text


def _named(flag: str, texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value or "/" in name:
            raise ConfigurationError(f"{flag} {text!r} is no pair: write NAME=VALUE")
        if name in found:
            raise ConfigurationError(f"{flag}: {name!r} is given twice: give each adapter its own name")
        found[name] = value
    return found
