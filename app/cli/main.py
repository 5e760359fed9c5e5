"""The command ``bitwright``: its subcommands, and how every one of them ends."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version as package_version
from traceback import print_exc

import click

from app.cli import exporting, local, remote, service, solving
from app.cli.command import Command, Group
from app.cli.failures import Stopped, exit_code, problem_of
from app.cli.output import Exit, Output, json_flag, output_of

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(
    cls=Group,
    context_settings=_CONTEXT,
    no_args_is_help=True,
    examples=(
        "bitwright export my_model.py:build --out model.pt2 --calibration-out calibration.safetensors",
        'bitwright search model.pt2 --calibration calibration.safetensors --budget "4 bits"',
        "bitwright serve",
        'bitwright submit model.pt2 --calibration calibration.safetensors --budget "4 bits" --wait',
    ),
)
def cli() -> None:
    """Find the bit-width of each layer of a neural network: measured sensitivities, proven plans.

    Exit codes: 0 done, 1 defect, 2 wrong usage, 3 input refused, 4 infeasible, 5 gate missed.
    """


@cli.command(
    cls=Command,
    examples=("bitwright version --json",),
)
@json_flag
@click.pass_context
def version(context: click.Context) -> None:
    """Tell which version this is."""
    out = output_of(context)
    out.document({"bitwright": package_version("bitwright")})
    if out.json_target is None:
        out.console.print(package_version("bitwright"))


for command in (
    *service.COMMANDS,
    *local.COMMANDS,
    *remote.COMMANDS,
    *exporting.COMMANDS,
    *solving.COMMANDS,
):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Returns:
        The exit code, see `Exit`.
    """
    out = Output()
    try:
        # Commands return nothing; what comes back is the code of a `click.exceptions.Exit`.
        ended = cli.main(args=list(arguments), prog_name="bitwright", obj=out, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        out.errors.print("interrupted")
        return 130
    except BrokenPipeError:
        return Exit.DEFECT
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever it is becomes an exit code
        return _failed(out, error)
    return Exit.DONE if ended is None else int(ended)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def _failed(out: Output, error: Exception) -> int:
    problem = problem_of(error)
    if problem is None:
        print_exc()
        problem = {
            "type": "urn:bitwright:problem:internal-error",
            "title": "A defect in Bitwright",
            "status": 500,
            "detail": f"{type(error).__name__}: {error}",
        }
    with suppress(BrokenPipeError):
        out.problem(problem)
    return error.code if isinstance(error, Stopped) else exit_code(problem)
