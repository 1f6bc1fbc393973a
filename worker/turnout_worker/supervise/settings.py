"""The settings of `turnout-worker serve`: its flags, and which of them cannot work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

from turnout.terms import ENV_BIND_ADDRESS, WORKER_PORT, WORKER_STATUS_PORT, Role
from turnout_runtime.options import read_port, read_seconds, read_some_seconds
from turnout_worker.errors import ConfigurationError
from turnout_worker.sources.options import add_source_options, fetch_requests

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from turnout_worker.supervise.model import Prepared

Engine = Literal["vllm"]
TERMINATION_LOG: Final = "/dev/termination-log"
"""Where kubelet reads why a container ended."""
ENV_API_KEY: Final = "VLLM_API_KEY"
MAX_KEY_BYTES: Final = 4096
MODEL: Final = "{model}"
HOST: Final = "{host}"
_HIDDEN: Final = "***"
_SECRETS: Final = frozenset({"--hf-token"})
"""Flags of the engine whose values are not shown."""
_KEY_FLAGS: Final = frozenset({"--api-key", "--api_key"})


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How one engine is run. Times in seconds."""

    model: str
    arguments: tuple[str, ...]
    """The worker's own flags, among them those of `turnout_worker.sources.options`."""
    engine: Engine
    role: Role
    command: tuple[str, ...]
    """The engine's program and arguments; `MODEL` stands for the folder of the model, ``{adapter:NAME}`` for an adapter's."""
    bind_host: str
    """Where the worker's status port listens, and the engine by `HOST`."""
    engine_host: str
    """Where the engine is asked."""
    port: int
    """The engine's."""
    status_port: int
    prepare_timeout: float
    startup_timeout: float
    warm_up_timeout: float
    stuck_timeout: float
    shutdown_timeout: float
    api_key: str = ""
    """What the engine demands from its clients; it is given to it in its environment."""
    termination_log: str = ""

    def engine_command(self, files: Prepared) -> list[str]:
        """Return the engine's command for *files*."""
        stands_for = {MODEL: files.model, HOST: self.bind_host}
        stands_for |= {f"{{adapter:{name}}}": folder for name, folder in files.adapters.items()}
        command = list(self.command)
        for placeholder, value in stands_for.items():
            command = [word.replace(placeholder, value) for word in command]
        return command

    @property
    def shown_command(self) -> tuple[str, ...]:
        """The command as it may be shown."""
        shown: list[str] = []
        hide = False
        for word in self.command:
            flag, equals, _ = word.partition("=")
            if hide and not word.startswith("-"):
                shown.append(_HIDDEN)
            elif flag.replace("_", "-") in _SECRETS and equals:
                shown.append(f"{flag}={_HIDDEN}")
            else:
                shown.append(word)
            hide = not equals and flag.replace("_", "-") in _SECRETS
        return tuple(shown)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `turnout-worker serve` to *parser*."""
    add = parser.add_argument
    parser.usage = "%(prog)s --model SOURCE [OPTION ...] -- PROGRAM [ARGUMENT ...]"
    parser.epilog = (
        f"Behind -- stands the engine's command. {MODEL} in it stands for the model's folder, {{adapter:NAME}} for an adapter's, "
        f"{HOST} for the address to listen on."
    )
    add_source_options(parser)
    add("--engine", choices=get_args(Engine), default="vllm", help="which engine the command starts")
    add("--role", choices=get_args(Role), default="aggregated", help="what it does for a request")
    add("--host", help=f"address to listen on; ${ENV_BIND_ADDRESS}, or all, where it is not given")
    add(
        "--port",
        type=read_port,
        default=WORKER_PORT,
        metavar="PORT",
        help="where the engine's command lets it listen",
    )
    add(
        "--status-port",
        type=read_port,
        default=WORKER_STATUS_PORT,
        metavar="PORT",
        help="the worker's own: /startup, /ready, /live, /status",
    )
    for flag, default, meaning in (
        ("--prepare-timeout", 14400.0, "the model must be there by then"),
        ("--startup-timeout", 3600.0, "the engine's /health must answer by then"),
        ("--warm-up-timeout", 300.0, "its first completion must be answered by then"),
        ("--stuck-timeout", 120.0, "without an answer from /health for so long, /live fails"),
    ):
        add(flag, type=read_some_seconds, metavar="SECONDS", default=default, help=meaning)
    add(
        "--shutdown-timeout",
        type=read_seconds,
        default=120.0,
        metavar="SECONDS",
        help="what the engine has after SIGTERM before it is killed; its own --shutdown-timeout must be shorter",
    )
    add(
        "--api-key-file",
        metavar="PATH",
        help=f"file with the key that the engine demands; it gets it in ${ENV_API_KEY}. Where it is not given, that variable is used",
    )
    add(
        "--termination-log",
        metavar="PATH",
        help=f"file that the last words are written to; {TERMINATION_LOG}, if it exists, where it is not given",
    )


def serve_settings(
    options: argparse.Namespace, command: Sequence[str], environment: Mapping[str, str]
) -> ServeSettings:
    """Complete and check what was parsed. Raise ConfigurationError, saying what to write instead."""
    if not command or not command[0]:
        raise ConfigurationError("say behind -- how the engine is started: -- vllm serve {model} --port 8000")
    if any(word.partition("=")[0] in _KEY_FLAGS for word in command):
        raise ConfigurationError(
            "--api-key on the engine's command line can be read by everyone who can see the pod: use --api-key-file"
        )
    if not options.port:
        raise ConfigurationError("--port 0 says not where the engine listens: give it a port of its own")
    if options.port == options.status_port:
        raise ConfigurationError(f"--port and --status-port are both {options.port}: give each its own")
    fetch_requests(options)  # whether the flags can work
    host = options.host or environment.get(ENV_BIND_ADDRESS) or "0.0.0.0"  # noqa: S104 - a pod listens on all
    return ServeSettings(
        model=options.model,
        arguments=tuple(options.own_arguments),
        engine=options.engine,
        role=options.role,
        command=tuple(command),
        bind_host=host,
        engine_host="127.0.0.1" if host == "0.0.0.0" else host,  # noqa: S104 - compared, not bound
        port=options.port,
        status_port=options.status_port,
        prepare_timeout=options.prepare_timeout,
        startup_timeout=options.startup_timeout,
        warm_up_timeout=options.warm_up_timeout,
        stuck_timeout=options.stuck_timeout,
        shutdown_timeout=options.shutdown_timeout,
        api_key=_key(options.api_key_file) if options.api_key_file else environment.get(ENV_API_KEY, ""),
        termination_log=_termination_log(options.termination_log),
    )


def _key(path: str) -> str:
    """Return the key in the file *path*. Raise ConfigurationError where there is none."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"--api-key-file {path} cannot be read: {error.strerror}") from error
    key = text.strip().decode("ascii", "replace")
    if not key or len(text) > MAX_KEY_BYTES or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            f"--api-key-file {path} holds no key: it must hold one line of ASCII without blanks, at most {MAX_KEY_BYTES} bytes"
        )
    return key


def _termination_log(given: str | None) -> str:
    if given is not None:
        if not given or not Path(given).absolute().parent.is_dir():
            raise ConfigurationError(f"--termination-log {given!r}: there is no such folder")
        return given
    return TERMINATION_LOG if os.path.isfile(TERMINATION_LOG) else ""  # noqa: PTH113 - one call
