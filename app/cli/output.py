"""Where a command's words and documents go: people read the terminal, programs read JSON.

Documents go to standard output or into a file; everything said to people while a document goes to standard output
goes to standard error, so that a pipe carries JSON and nothing else.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape

Command = TypeVar("Command", bound=Callable[..., Any])
STDOUT = "-"
_PIPE_WIDTH = 160
"""Columns where there is no terminal that would say."""


class Exit(IntEnum):
    """Exit codes, fit for pipelines."""

    DONE = 0
    """What was asked for was done."""
    DEFECT = 1
    """A defect, or something needed (a server, a disk) is not there."""
    USAGE = 2
    """The command line itself is wrong."""
    REFUSED = 3
    """An input was refused; the problem document says which and why."""
    INFEASIBLE = 4
    """No plan is possible within the budget; the document holds the smallest possible one."""
    GATE_MISSED = 5
    """The plan was made and measured, but misses a gate."""


@dataclass
class Output:
    """Where this call of the command line writes.

    Args:
        json_target: ``None`` for people, ``"-"`` for a document on standard output, else a file's path.
    """

    json_target: str | None = None
    _consoles: dict[str, Console] = field(default_factory=dict)

    @property
    def console(self) -> Console:
        """For people: standard output, or standard error while a document goes to standard output."""
        return self._console("stderr" if self.json_target == STDOUT else "stdout")

    @property
    def errors(self) -> Console:
        """For errors and progress."""
        return self._console("stderr")

    def document(self, document: Any) -> None:
        """Write a document where JSON was asked for; nowhere otherwise."""
        if self.json_target is None:
            return
        text = _text(document)
        if self.json_target == STDOUT:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        target = Path(self.json_target)
        if target.exists() and not target.is_file():
            # A pipe or a device (`--json /dev/null`) is written to; replacing it by a file would destroy it.
            with target.open("w", encoding="utf-8") as stream:
                stream.write(text)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)

    def problem(self, document: dict[str, Any]) -> None:
        """Tell a problem: as a document on standard output (and in the file asked for), or in words."""
        if self.json_target is None:
            self.errors.print(_problem_words(document))
            return
        sys.stdout.write(_text(document))
        sys.stdout.flush()
        if self.json_target == STDOUT:
            return
        try:
            self.document(document)
        except OSError as error:
            # Perhaps the very problem that is told: a full disk, a folder that went away.
            self.errors.print(f"[red]{escape(f'{self.json_target} cannot be written: {error.strerror}')}[/]")

    def _console(self, stream: str) -> Console:
        if stream not in self._consoles:
            console = Console(stderr=stream == "stderr", highlight=False)
            if not console.is_terminal:
                console.width = max(console.width, _PIPE_WIDTH)
            self._consoles[stream] = console
        return self._consoles[stream]


def output_of(context: click.Context) -> Output:
    """The output of the running call."""
    return context.ensure_object(Output)


def json_flag(command: Command) -> Command:
    """Add ``--json``: the document on standard output."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001
        if value:
            output_of(context).json_target = STDOUT

    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=remember,
        is_eager=True,
        help="Write a JSON document to standard output.",
    )(command)


def json_out(command: Command) -> Command:
    """Add ``--json OUT``: the result document into a file, or to standard output for ``-``."""

    def remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            check_writable(value, parameter)
            output_of(context).json_target = value

    return click.option(
        "--json",
        metavar="OUT",
        expose_value=False,
        callback=remember,
        is_eager=True,
        help="Write the result as JSON into the file OUT; '-' is standard output.",
    )(command)


def _text(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def writable(_context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """For a click option that names a file to be written: see `check_writable`."""
    if path is not None:
        check_writable(path, parameter)
    return path


def check_writable(path: str, parameter: click.Parameter | None = None) -> None:
    """Make sure, before work of perhaps hours, that its result can be written.

    Args:
        path: Of a file to be written later, in a folder that may not be there yet; ``"-"`` is standard output.
        parameter: The option that names it, for the message.

    Raises:
        click.BadParameter: It is a folder, or lies where nothing can be written.
    """
    if path == STDOUT:
        return
    target = Path(path)
    if target.is_dir() or not path:
        raise click.BadParameter(f"{path!r} is no file's name but a folder's", param=parameter)
    if target.exists() and not target.is_file():
        return  # a pipe or a device
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise click.BadParameter(f"{str(folder)!r} is not a folder", param=parameter)
    if not os.access(folder, os.W_OK):
        raise click.BadParameter(f"nothing can be written into {str(folder)!r}", param=parameter)


def _problem_words(document: dict[str, Any]) -> str:
    lines = [f"[bold red]{escape(str(document.get('title', 'Error')))}[/]"]
    if document.get("detail"):
        lines.append(escape(str(document["detail"])))
    for name in ("field", "value", "allowed"):
        if document.get(name) is not None:
            value = document[name]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"  [dim]{name + ':':<9}[/]{escape(text)}")
    return "\n".join(lines)
