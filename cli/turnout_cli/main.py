"""`turnout`: the user's command line."""

from __future__ import annotations

import typer

from turnout_cli import crds, dev, explain, key
from turnout_cli.demo import command as demo
from turnout_cli.replay import command as replay

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Serve large language models on Kubernetes: prefill and decode pools scaled together, and one front door.",
)
app.add_typer(demo.app, name="demo")
app.add_typer(dev.app, name="dev")
app.add_typer(crds.app, name="crds")
app.add_typer(key.app, name="key")
app.add_typer(explain.app, name="explain")
app.command("replay")(replay.replay)


def main() -> None:
    """Run the command line."""
    app()
