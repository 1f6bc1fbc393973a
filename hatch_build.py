"""Compiles the path of a request with mypyc when a wheel is built with HATCH_BUILD_HOOK_ENABLE_CUSTOM=1.

The same source either way: without it the wheel is pure Python and behaves alike, at about half the speed. Which
modules are compiled stands in pyproject.toml; the sources lie beside them in the wheel, for tracebacks.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FLAGS = "-g0 -fno-semantic-interposition -fno-plt -fvisibility=hidden"
"""Without debugging information, a tenth of the size (tracebacks know the Python lines anyhow); and modules that call each
other directly, for they are one library: 6 % fewer instructions."""


class CompiledBuildHook(BuildHookInterface[BuilderConfig]):
    """Adds the extension modules to the wheel and marks it as made for this Python and machine."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless what is made is an editable installation: there the sources are to be edited."""
        if version == "editable":
            return
        from mypyc.build import mypycify  # noqa: PLC0415 - needed only where something is compiled
        from setuptools import Distribution  # noqa: PLC0415 - as above

        root = Path(self.root)
        sources = [
            str(path.relative_to(root))
            for pattern in self.config["modules"]
            for path in sorted(root.glob(pattern))
            if path.name != "__init__.py"
        ]
        self._folder = tempfile.TemporaryDirectory(prefix="turnout-compiled-")
        objects, libraries = Path(self._folder.name, "objects"), Path(self._folder.name, "libraries")
        os.environ.setdefault("CFLAGS", _FLAGS)
        extensions = mypycify(["--ignore-missing-imports", *sources], opt_level="3", target_dir=str(objects))
        distribution = Distribution({"name": "turnout", "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(libraries), str(objects)
        command.ensure_finalized()
        command.run()
        for library in libraries.rglob("*.so"):
            build_data["force_include"][str(library)] = str(library.relative_to(libraries))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - the interface's
        """Remove what was compiled: it is in the wheel now."""
        if version != "editable":
            self._folder.cleanup()
