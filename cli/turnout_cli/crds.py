"""`turnout crds`: print the CustomResourceDefinitions, write them into folders, or check that folders hold them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from turnout.api.crds import custom_resource_definitions

app = typer.Typer(subcommand_metavar="")

_OF_A_CHECKOUT: Final = (Path("crds"), Path("charts/turnout/files/crds"))
"""Where a checkout keeps the CRDs: for kubectl, and for the chart."""
_HEADER: Final = "# Generated from core/turnout/api by `turnout crds`: change the models, not this file.\n"


class _Plain(yaml.SafeDumper):
    """Writes equal parts out each time: anchors are for machines."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the library's signature
        return True


def rendered() -> dict[str, str]:
    """Return the text of each CRD by file name."""
    return {
        name: _HEADER + yaml.dump(definition, Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)
        for name, definition in custom_resource_definitions().items()
    }


def differences(folder: Path) -> list[str]:
    """Return one line for each CRD that *folder* lacks, has otherwise, or has although no model stands for it."""
    expected = rendered()
    found = {path.name: path.read_text() for path in folder.glob("*.yaml")} if folder.is_dir() else {}
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            lines.append(f"{folder / name} is missing")
        elif name not in expected:
            lines.append(f"{folder / name} belongs to no model")
        elif found[name] != expected[name]:
            lines.append(f"{folder / name} differs from the models")
    return lines


@app.callback(invoke_without_command=True)
def crds(
    output: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", help="Folder to write to or to check. Repeat it for several."),
    ] = None,
    check: Annotated[  # noqa: FBT002 - a flag of the command line
        bool,
        typer.Option(
            "--check",
            help="Write nothing; exit with 1 where a folder (by default those of a checkout) differs.",
        ),
    ] = False,
) -> None:
    """Print the CustomResourceDefinitions of this version, ready for `kubectl apply -f -`.

    In a checkout, after a change to core/turnout/api:

    turnout crds -o crds -o charts/turnout/files/crds
    """
    folders = output or []
    if check:
        folders = folders or list(_OF_A_CHECKOUT)
        faults = [line for folder in folders for line in differences(folder)]
        if faults:
            print("\n".join(faults), file=sys.stderr)
            print(f"Run: turnout crds {' '.join(f'-o {folder}' for folder in folders)}", file=sys.stderr)
            raise typer.Exit(1)
    elif folders:
        for folder in folders:
            _write(folder)
    else:
        print("---\n".join(rendered().values()), end="")


def _write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    expected = rendered()
    for stale in {path.name for path in folder.glob("*.yaml")} - expected.keys():
        (folder / stale).unlink()
    for name, text in expected.items():
        (folder / name).write_text(text)
