"""Commands whose help ends with examples."""

from collections.abc import Sequence
from typing import Any

import click


class _Examples(click.Command):
    """As click's, with a section of examples.

    Args:
        examples: Whole command lines, one in a line of the help.
        arguments: click's own.
    """

    def __init__(self, *, examples: Sequence[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.examples = tuple(examples)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line of its own, however long."""
        super().format_epilog(context, formatter)
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class Command(_Examples):
    """One command."""


class Group(_Examples, click.Group):
    """A command with subcommands."""
