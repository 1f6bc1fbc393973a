"""The pages agree with the code where no generator writes them, and the site needs nothing but itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from turnout.sizing.accelerators import ACCELERATORS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
IN_CODE = re.compile(r'f"\{(?:names\.)?GROUP\}/([a-z][a-z-]*)"')
"""A label or an annotation of Turnout's own, as the code spells it."""


def test_every_label_and_annotation_is_in_the_reference() -> None:
    """A reader who finds one on an object finds its meaning."""
    found = {
        f"turnout.dev/{name}"
        for folder in ("core", "operator", "router", "worker")
        for file in (ROOT / folder).rglob("*.py")
        for name in IN_CODE.findall(file.read_text())
    }
    assert len(found) > 5
    page = (DOCS / "reference" / "labels.md").read_text()
    assert {name for name in found if f"`{name}`" not in page} == set()


def test_the_quickstart_names_every_accelerator_with_its_label() -> None:
    """The table of node labels is complete."""
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \|$", (DOCS / "quickstart.md").read_text(), re.MULTILINE)
    assert dict(rows) == {name: spec.product for name, spec in ACCELERATORS.items() if spec.product}


def test_the_site_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """It can be read without a network: no font, script, style or image comes from another host."""
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=ROOT,
        env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        assert not re.findall(
            r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^>]*>", text
        ), page
        # The theme would fetch a program from a CDN to draw such a picture.
        assert 'class="mermaid"' not in text, page


def test_every_page_is_in_the_navigation() -> None:
    """A page that nothing leads to is not read."""
    nav = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
