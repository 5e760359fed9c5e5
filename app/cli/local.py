"""Commands that work on this machine's files, without a server."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import click

from app.cli import options, tables
from app.cli.command import Command
from app.cli.ending import end_with_result
from app.cli.failures import Stopped, needs, require
from app.cli.output import json_flag, json_out, output_of
from app.cli.progress import job_progress
from app.cli.service import DATA_DIR, load_settings, tune_memory
from workers.intake.packing import packed


@click.command(
    cls=Command,
    examples=(
        'bitwright search model.pt2 --calibration photos.safetensors --budget "4 bits"',
        'bitwright search model.pt2 --calibration c.safetensors --evaluation e.safetensors --budget "12 MB"',
        'bitwright search model.pt2 --calibration c.safetensors --budget "4 bits" --pin classifier.weight=8',
        'bitwright search m.pt2 --calibration c.safetensors --budget "3 MB" --activations 8 --limit bit_operations=12G',
        'bitwright search model.pt2 --calibration c.safetensors --budget "4 bits" --gate "kl<=0.01" --json -',
    ),
)
@click.argument("model", type=click.Path(path_type=Path))
@options.search_options
@options.GATES
@options.REPORT
@click.option(
    "--workers", type=click.IntRange(0, 256), help="Processes that measure; 0: one for each core, at most 8."
)
@DATA_DIR
@json_out
@click.pass_context
def search(
    context: click.Context, /, *, model: Path, workers: int | None, data_dir: str | None, **given: Any
) -> None:
    """Search bit-widths for MODEL (.pt2 or a Hugging Face folder) here and now, without a server.

    Estimates and measurements are kept in the data directory: an interrupted search goes on where it was, and another
    budget on the same data costs little or no measuring.
    """
    out = output_of(context)
    require("worker", "torch", "safetensors")  # said now rather than by the processes that measure
    with needs("worker"):
        from app.local import Files, SearchProblem  # noqa: PLC0415
        from app.local import search as run_search  # noqa: PLC0415
    settings = load_settings(workers=workers, data_dir=data_dir)
    evaluation = given["evaluation"]
    files = Files(
        model=model,
        calibration=Path(given["calibration"]),
        evaluation=None if evaluation is None else Path(evaluation),
    )
    tune_memory()
    _log_to(settings.data_dir / "logs" / "search.log")
    try:
        with job_progress(out.errors) as progress:
            document = run_search(
                files,
                options.request_of(given),
                settings,
                lambda update: progress.update(update.state, update.progress),
            )
    except SearchProblem as error:
        raise Stopped(error.document) from None
    end_with_result(out, document, gates=given["gates"], report=given["report"])


@click.command(
    cls=Command,
    examples=("bitwright inspect model.pt2", "bitwright inspect model.pt2 --json"),
)
@click.argument("model", type=click.Path(path_type=Path))
@json_flag
@click.pass_context
def inspect(context: click.Context, /, model: Path) -> None:
    """Tell the units of MODEL (.pt2 or a Hugging Face folder), and what cannot be quantized and why.

    The file is read as data; nothing in it is run. A refused file ends with exit code 3.
    """
    out = output_of(context)
    with needs("worker"):
        import torch  # noqa: F401, PLC0415

        from workers.graph.describe import describe  # noqa: PLC0415
        from workers.intake.models import read_model  # noqa: PLC0415
    with packed(model) as path, path.open("rb") as file:
        description = describe(read_model(path)).to_json()
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        document = {"name": model.name, "sha256": sha256, "size_bytes": path.stat().st_size, **description}
    out.document(document)
    if out.json_target is None:
        out.console.print(tables.model(document))


def _log_to(path: Path) -> None:
    """Keep what the dispatcher logs out of the terminal: its warnings are about things that it mends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=path, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


COMMANDS = (search, inspect)
