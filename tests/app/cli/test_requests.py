"""From options to a request; what is not given is left to the service, whose defaults the help tells."""

import re

import click
import pytest

from app.cli.local import search
from app.cli.options import plan_options, request_of, search_options
from app.jobs.candidates import DEFAULT_CANDIDATES
from app.jobs.rules import DEFAULT_REGRET
from app.jobs.schemas import JobCreate


def parsed(arguments: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}

    @click.command()
    @search_options
    def command(**given: object) -> None:
        found.update(request_of(given))

    command.main([*arguments, "--calibration", "c", "--budget", "4 bits"], standalone_mode=False)
    return found


def test_only_what_is_given() -> None:
    assert parsed([]) == {"budgets": ["4 bits"]}


def test_everything() -> None:
    arguments = """
        --candidates 2,4,8 --scheme group:64-symmetric-mse --metric mse --seed 3 --samples 7
        --holdout 0.5 --batch-size 16 --memory-bytes 1000000 --pin a.weight=8 --pin b=c=4 --tie q,k,v
        --tie g,u --exclude x --exclude y --budget-counts file --budget 12MB --activations 8,4
        --compare mse --refine-rounds 5 --refine-passes 80 --max-passes 12.5 --regret 0.02 --probes 8
        --limit bit_operations=1.2G --target gguf --menu full --output logits --compute-dtype model
    """
    request = parsed(arguments.split())
    assert request == {
        "budgets": ["12MB", "4 bits"],
        "candidates": [2, 4, 8],
        "schemes": ["group:64-symmetric-mse"],
        "metric": "mse",
        "seed": 3,
        "samples": 7,
        "holdout": 0.5,
        "batch_size": 16,
        "memory_bytes": 1_000_000,
        "pins": {"a.weight": 8, "b=c": 4},
        "ties": [["q", "k", "v"], ["g", "u"]],
        "exclude": ["x", "y"],
        "budget_counts": "file",
        "activation_candidates": [8, 4],
        "compare": "mse",
        "regret": 0.02,
        "refine_rounds": 5,
        "refine_passes": 80.0,
        "max_passes": 12.5,
        "probes": 8,
        "limits": {"bit_operations": "1.2G"},
        "target": "gguf",
        "menu": "full",
        "output": "logits",
        "compute_dtype": "model",
    }
    assert set(request) == set(JobCreate.model_fields) - {
        "model",
        "dataset",
        "evaluation_dataset",
        "scheme",  # one of `schemes`
        "outputs",  # instead of `output`
        "name",
        "owner",
        "priority",
    }


def test_outputs_with_weights_are_several() -> None:
    arguments = ["--output", "logits=1", "--output", "boxes=0.5:mse"]
    assert parsed(arguments) == {
        "budgets": ["4 bits"],
        "outputs": {"logits": 1.0, "boxes": {"weight": 0.5, "compare": "mse"}},
    }
    assert parsed(["--output", "logits=2"])["outputs"] == {"logits": 2.0}


def test_zero_is_given() -> None:
    assert parsed(["--seed", "0", "--holdout", "0"]) == {"budgets": ["4 bits"], "seed": 0, "holdout": 0.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--candidates", "2,x"], "whole numbers"),
        (["--candidates", ""], "whole numbers"),
        (["--pin", "a.weight"], "UNIT=BITS"),
        (["--pin", "=8"], "UNIT=BITS"),
        (["--pin", "a=4.5"], "UNIT=BITS"),
        (["--pin", "a=4", "--pin", "a=8"], "4 and to 8"),
        (["--metric", "psnr"], "kl"),
        (["--output", "a", "--output", "b"], "NAME=WEIGHT"),
        (["--output", "a=x"], "NAME=WEIGHT"),
        (["--output", "a=1", "--output", "a=2"], "named twice"),
        (["--budget-counts", "disk"], "weights"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    with pytest.raises(click.UsageError, match=words):
        parsed(arguments)


def test_the_help_tells_the_services_defaults() -> None:
    told = {
        parameter.name: re.search(r"\[default: (.+?)\]", parameter.help or "")
        for parameter in search.params
        if isinstance(parameter, click.Option)
    }
    for name in (
        "candidates",
        "metric",
        "probes",
        "seed",
        "holdout",
        "budget_counts",
    ):
        default = list(DEFAULT_CANDIDATES) if name == "candidates" else JobCreate.model_fields[name].default
        text = (
            ",".join(map(str, default))
            if isinstance(default, list)
            else f"{default:g}"
            if isinstance(default, float)
            else str(default)
        )
        match = told[name]
        assert match is not None, name
        assert match[1] == text, name
    regret = told["regret"]
    assert regret is not None
    assert regret[1] == f"{DEFAULT_REGRET:g} with auto, else none"


def test_a_plan_takes_what_a_plan_request_takes() -> None:
    from app.plans.schemas import PlanCreate

    @click.command()
    @plan_options
    def command(**_given: object) -> None: ...

    assert {p.name for p in command.params} <= set(PlanCreate.model_fields)
