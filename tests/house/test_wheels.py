"""What is in each wheel: the images' holds the services and nothing of the tools, each tool's holds that tool."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY: Final = Path(__file__).resolve().parents[2]
SERVICES: Final = ["operator", "router", "worker"]
PACKAGES: Final = {
    ".": {
        "turnout",
        "turnout_kube",
        "turnout_prom",
        "turnout_runtime",
        *(f"turnout_{service}" for service in SERVICES),
    },
    "simulator": {"turnout_simulator"},
    "devcluster": {"turnout_devcluster"},
    "cli": {"turnout_cli"},
}
"""The packages that each distribution's wheel holds, by the distribution's folder."""


def let_through() -> Iterator[str]:
    """Yield what .dockerignore lets into an image's build: files and, with a slash at the end, folders."""
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            name = line.removeprefix("!").removesuffix("**")
            assert "*" not in name, "a pattern that this test does not read"
            yield name


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with what an image's build sees of the repository."""
    root = tmp_path_factory.mktemp("context")
    for name in let_through():
        if name.endswith("/"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, root / name)
    return root


def build(folder: Path, target: Path) -> Path:
    """Build the wheel of the distribution in *folder* into *target*, as the Dockerfiles do."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("HATCH_")},
    )
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def image_wheel(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel that all three images install."""
    return build(context, tmp_path_factory.mktemp("wheel"))


def listed(wheel: Path) -> set[str]:
    """Return the names of the files in *wheel*, its metadata left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def modules(package: Path) -> set[str]:
    """Return the Python files below *package* by their names in a wheel."""
    return {str(file.relative_to(package.parent)) for file in package.rglob("*.py")}


def test_the_images_hold_the_services_and_no_tool(image_wheel: Path) -> None:
    """The one wheel of all images: every module of the core and the services, and the catalog of models."""
    found = listed(image_wheel)
    assert {name.split("/")[0] for name in found} == PACKAGES["."]
    data = {name for name in found if Path(name).suffix not in {".py", ".typed"}}
    assert data == {"turnout/sizing/catalog.json"}
    roots = [path for name in PACKAGES["."] for path in REPOSITORY.glob(f"*/{name}") if path.is_dir()]
    assert {name for name in found if name.endswith(".py")} == set().union(*map(modules, roots))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_without_the_tools(service: str, image_wheel: Path, tmp_path: Path) -> None:
    """What an image starts imports nothing that its wheel leaves out (other people's packages come from here)."""
    with zipfile.ZipFile(image_wheel) as archive:
        archive.extractall(tmp_path)
    # Without `site` no .pth file is read, so that the checkout's own folders are not importable.
    code = (
        f"import sys; sys.path += {[str(tmp_path), sysconfig.get_path('purelib')]!r}\n"
        f"from turnout_{service}.main import main\n"
        f"sys.argv = ['turnout-{service}', '--help']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"turnout-{service}" in done.stdout


@pytest.mark.parametrize("tool", ["simulator", "devcluster", "cli"])
def test_a_tool_is_a_wheel_of_its_own(tool: str, tmp_path: Path) -> None:
    """It holds its package; the dev cluster's also the Go module that the control plane is built from."""
    found = listed(build(REPOSITORY / tool, tmp_path))
    assert {name.split("/")[0] for name in found} == PACKAGES[tool]
    (package,) = PACKAGES[tool]
    assert {name for name in found if name.endswith(".py")} == modules(REPOSITORY / tool / package)
    if tool == "devcluster":
        assert f"{package}/controlplane/go.mod" in found


def test_an_image_is_built_with_what_pyproject_names(context: Path) -> None:
    """The build of the compiled wheel finds its hook, and each Dockerfile installs its own extra of the one wheel."""
    assert (context / "hatch_build.py").is_file()
    for service in SERVICES:
        text = (REPOSITORY / f"Dockerfile.{service}").read_text()
        assert "hatchling build -t wheel -d /wheels" in text
        assert f'"${{wheel}}[{service}]"' in text
