"""``turnout key``: API keys. A key is shown once; the cluster only ever holds its digest."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer
import yaml

app = typer.Typer(no_args_is_help=True, help="Make API keys for clients.")

_KEY_BYTES = 32


@app.callback()
def key() -> None:
    """Make API keys for clients."""


@app.command()
def create(
    name: Annotated[
        str,
        typer.Option(help="What people call the key, so that it can be withdrawn: 1 to 63 characters."),
    ] = "default",
) -> None:
    """Print a new random key, and the entry for a TokenBudget's `spec.keys` that lets its holder in."""
    if not 1 <= len(name) <= 63:  # noqa: PLR2004 - as the resource says
        raise typer.BadParameter("a key's name has 1 to 63 characters", param_hint="--name")
    secret = f"sk-{secrets.token_urlsafe(_KEY_BYTES)}"
    entry = {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest()}
    print(f"# The key, shown this once. Clients send it as `Authorization: Bearer KEY`:\n{secret}")
    print("\n# For spec.keys of a TokenBudget:")
    print(yaml.safe_dump([entry], sort_keys=False), end="")
