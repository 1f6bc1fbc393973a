"""The catalog that ships: complete, small, and found by any spelling of a source that the hub takes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files

from turnout.sizing.architecture import ModelArchitecture
from turnout.sizing.catalog import catalog, known

FILE = files("turnout.sizing").joinpath("catalog.json")


def test_every_line_is_a_model_and_no_name_stands_twice() -> None:
    """Names differ in more than their case, for the hub does not tell upper from lower case."""
    rows = json.loads(FILE.read_text())
    assert len(rows) > 150
    assert len(catalog()) == len(rows)
    assert [ModelArchitecture.from_fields(row).to_fields() for row in rows] == rows


def test_it_is_small() -> None:
    """It is in every image."""
    assert len(FILE.read_bytes()) < 100_000


def test_every_model_adds_up() -> None:
    """Parameters that a token meets are some of all; layers with attention or state are some of all."""
    for model in catalog().values():
        assert 0 < model.active_parameters <= model.parameters
        assert 0.4 < model.weight_bytes / model.parameters <= 2
        assert sum(group.layers for group in model.attention) + model.state_layers <= model.layers
        assert all(model.attention_heads % group.kv_heads == 0 for group in model.attention)
        assert (model.active_parameters < model.parameters) == (model.experts > 0), model.name


def test_a_source_is_found_whatever_its_case() -> None:
    """As on the hub."""
    found = known("hf://meta-llama/Llama-3.1-8B-Instruct")
    assert found is not None
    assert known("hf://Meta-Llama/llama-3.1-8b-instruct") is found


def test_what_it_does_not_have_is_not_known() -> None:
    """Neither another model nor another kind of source."""
    for source in (
        "",
        "hf://",
        "hf://acme/unknown",
        "meta-llama/Llama-3.1-8B",
        "s3://meta-llama/Llama-3.1-8B",
    ):
        assert known(source) is None


def test_it_is_read_when_it_is_asked() -> None:
    """An import reads no file: routers import what sizes models, and never ask."""
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name == 'open' else None)\n"
        "from turnout.sizing import capacity, catalog, latency\n"
        "assert not any(name.endswith('catalog.json') for name in opened)\n"
        "catalog.known('hf://a/b')\n"
        "assert sum(name.endswith('catalog.json') for name in opened) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
