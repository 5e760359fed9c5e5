"""Options that several commands share, and what they become in a request."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from app.cli.gates import parse_gates
from app.cli.output import writable
from app.client import DEFAULT_URL
from workers.contracts import SCHEME_GRAMMAR, ComputeDtype, Estimator, Metric
from workers.menus import Target

Command = TypeVar("Command", bound=Callable[..., Any])

SERVER = click.option(
    "--server",
    envvar="BITWRIGHT_SERVER",
    default=DEFAULT_URL,
    show_default=True,
    show_envvar=True,
    metavar="URL",
    help="Where the service is.",
)
GATES = click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="CONDITION",
    callback=parse_gates,
    help="End with exit code 5 unless the measured plan meets this, e.g. 'kl<=0.01' or 'top1_agreement>=0.95'; "
    "evaluation data decide where there are any. May be repeated.",
)
REPORT = click.option(
    "--report",
    "report",
    metavar="OUT.html",
    callback=writable,
    help="Also save the report, one file that needs no network.",
)


def _candidates(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 2,3,4,8") from None


def _pins(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, int]:
    pins: dict[str, int] = {}
    for text in texts:
        unit, equals, bits = text.rpartition("=")
        if not equals or not unit or not bits.isdecimal():
            raise click.BadParameter(f"{text!r} is not UNIT=BITS, e.g. classifier.weight=8")
        if pins.get(unit, int(bits)) != int(bits):
            raise click.BadParameter(f"{unit!r} is pinned to {pins[unit]} and to {bits} bits")
        pins[unit] = int(bits)
    return pins


def _limits(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    limits: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, e.g. bit_operations=1.2G")
        limits[name.strip()] = value.strip()
    return limits


def _outputs(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> str | dict[str, Any] | None:
    """One output by its name, or several with weights."""
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    shares: dict[str, Any] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        weight, colon, compare = rest.partition(":")
        try:
            number = float(weight)
        except ValueError:
            raise click.BadParameter(
                f"{text!r} is not NAME=WEIGHT, e.g. boxes=0.5 or boxes=0.5:mse; a name alone stands for a single output"
            ) from None
        if name.strip() in shares:
            raise click.BadParameter(f"output {name.strip()!r} is named twice")
        shares[name.strip()] = {"weight": number, "compare": compare} if colon else number
    return shares


def _ties(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> list[list[str]]:
    return [[name.strip() for name in text.split(",")] for text in texts]


_PLAN_OPTIONS = (
    click.option(
        "--pin",
        "pins",
        multiple=True,
        callback=_pins,
        metavar="UNIT=BITS",
        help="Fix the bit-width of a unit. May be repeated.",
    ),
    click.option(
        "--tie",
        "ties",
        multiple=True,
        callback=_ties,
        metavar="UNIT,UNIT",
        help="These units take the same candidate (fused q, k, v). May be repeated.",
    ),
    click.option("--exclude", multiple=True, metavar="UNIT", help="Leave a unit in float. May be repeated."),
    click.option(
        "--limit",
        "limits",
        multiple=True,
        callback=_limits,
        metavar="NAME=VALUE",
        help="A further limit on the plan: bit_operations=1.2G (weight bits times activation bits of every "
        "multiply-accumulate, of one sample).",
    ),
    click.option(
        "--budget-counts",
        type=click.Choice(["weights", "file"]),
        help="What the budget binds: searched weights times bits, or the whole file with scales, zero points and "
        "everything left in float.  [default: weights]",
    ),
)

_SEARCH_OPTIONS = (
    click.option(
        "--calibration",
        required=True,
        metavar="FILE",
        help="Safetensors: one tensor for each model input, first axis = samples.",
    ),
    click.option(
        "--evaluation", metavar="FILE", help="Other samples, on which the finished plans are measured."
    ),
    click.option(
        "--budget",
        "budgets",
        multiple=True,
        required=True,
        metavar="BUDGET",
        help='"4 bits" (average per weight), "12 MB", "12 MiB", "123456 bits total" or "3.5x". May be repeated; '
        "the first one's plan is handed over.",
    ),
    click.option(
        "--candidates",
        callback=_candidates,
        metavar="BITS,...",
        help="Bit-widths on offer, 2 to 16; with --target by default those of them that it can store.  "
        "[default: 2,3,4,5,6,8]",
    ),
    click.option(
        "--scheme",
        "schemes",
        multiple=True,
        metavar="SCHEME",
        help=f"{SCHEME_GRAMMAR}. May be repeated: each unit then takes the one that suits it.  "
        "[default: channel-asymmetric]",
    ),
    click.option(
        "--target",
        type=click.Choice([t.value for t in Target]),
        help="Instead of schemes: what is to run the model. Units get what that can store; those that it does not quantize "
        "stay in float.",
    ),
    click.option(
        "--menu",
        type=click.Choice(["short", "full"]),
        help="How much of what the target can store is offered: what is worth its time, or everything.  [default: short]",
    ),
    click.option(
        "--output",
        multiple=True,
        callback=_outputs,
        metavar="NAME[=WEIGHT[:kl|:mse]]",
        help="Name or index of the model's output that is compared; inspect lists them. With weights it may be repeated: "
        "what is compared is then the weighted sum, e.g. --output logits=1 --output boxes=0.5:mse.  [default: the first "
        "floating-point one]",
    ),
    click.option(
        "--compute-dtype",
        type=click.Choice([d.value for d in ComputeDtype]),
        help="What a model with half-precision weights is computed in while it is measured: float32, or the type of the "
        "file.  [default: float32]",
    ),
    click.option(
        "--activations",
        "activation_candidates",
        callback=_candidates,
        metavar="BITS,...",
        help="Bit-widths on offer for the inputs of units, 2 to 16.  [default: float]",
    ),
    click.option(
        "--metric",
        type=click.Choice(["auto", *(m.value for m in (*Metric, *Estimator))]),
        help="auto: estimate all, measure what the estimates leave open. kl, mse, loss (needs labels): measure all, with "
        "--regret on no more samples than plans need. The others: estimate only.  [default: auto]",
    ),
    click.option(
        "--compare",
        type=click.Choice(["kl", "mse"]),
        help="What auto and estimates compare with the float model.  [default: kl where outputs have classes, else mse]",
    ),
    click.option(
        "--regret",
        type=float,
        help="Measure until plans most likely cost at most this share more than the best; without one kl, mse and loss measure "
        "everything on all samples.  [default: 0.01 with auto, else none]",
    ),
    click.option(
        "--max-passes",
        type=float,
        help="With a regret: measure at most this much, in float passes over the samples.  [default: no bound]",
    ),
    click.option(
        "--refine-rounds",
        type=int,
        help="How often plans may be measured again around for better ones; 0: never.  [default: 3]",
    ),
    click.option(
        "--refine-passes",
        type=float,
        help="Passes over the samples that this may take, all budgets together.  [default: three fifths of what costs took]",
    ),
    click.option("--probes", type=int, help="Sets of random signs that estimates rest on.  [default: 4]"),
    click.option("--seed", type=int, help="Chooses the samples when not all are used.  [default: 0]"),
    click.option("--samples", type=int, help="How many calibration samples to use.  [default: all]"),
    click.option(
        "--holdout",
        type=float,
        help="Without --evaluation: set this fraction of the calibration samples aside for it.  [default: 0]",
    ),
    click.option(
        "--batch-size",
        type=int,
        help="Samples per forward pass.  [default: as many as fit the widest value into 256 MiB, up to 32]",
    ),
    click.option(
        "--memory-bytes",
        type=int,
        help="Bound on activations kept between passes, per worker.  [default: 2 GiB]",
    ),
    *_PLAN_OPTIONS,
)


def plan_options(command: Command) -> Command:
    """Pins, ties, exclusions, and what a budget binds."""
    return _apply(command, _PLAN_OPTIONS)


def search_options(command: Command) -> Command:
    """Everything that describes a search."""
    return _apply(command, _SEARCH_OPTIONS)


def request_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The request's members that were given; the service fills in the rest, so that defaults live in one place."""
    names = (
        "budgets", "candidates", "schemes", "target", "menu", "output", "compute_dtype", "activation_candidates", "metric", "compare", "regret", "max_passes", "probes", "refine_rounds", "refine_passes", "seed",
        "samples", "holdout", "batch_size", "memory_bytes", "pins", "ties", "exclude", "limits", "budget_counts",
    )  # fmt: skip
    given = {name: options.get(name) for name in names}
    if isinstance(given["output"], dict):
        given["outputs"] = given.pop("output")
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value is not None and value not in ((), [], {})
    }


def _apply(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
