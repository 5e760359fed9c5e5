"""``bitwright export``: from a user's own PyTorch module to the files that the service reads.

The module's code runs here, on its owner's machine, and nowhere else.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from traceback import print_exc
from typing import Any

import click
from rich.markup import escape

from app.cli.command import Command
from app.cli.failures import Stopped, needs
from app.cli.output import Exit, json_flag, output_of, writable
from app.report import quantities
from workers.intake.packing import pack_folder

_EXAMPLE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]+\d+))?")


@click.command(
    cls=Command,
    examples=(
        "bitwright export my_model.py:build --out model.pt2 --calibration-out calibration.safetensors",
        "bitwright export torchvision.models:resnet18 --example 2x3x224x224 --out resnet18.pt2",
    ),
)
@click.argument("target", metavar="MODULE:FUNCTION|FILE.py:FUNCTION")
@click.option(
    "--out",
    "model_path",
    default="model.pt2",
    show_default=True,
    metavar="FILE",
    callback=writable,
    help="Where to write the model.",
)
@click.option(
    "--calibration-out",
    metavar="FILE",
    callback=writable,
    help="Where to write the calibration data the function returns.",
)
@click.option(
    "--example",
    "examples",
    multiple=True,
    metavar="[NAME=]SHAPE[:DTYPE]",
    help="Example input for a function that returns the module alone, e.g. 2x3x224x224 or ids=2x128:int64; "
    "once for each input, the first size is the batch.",
)
@json_flag
@click.pass_context
def export(
    context: click.Context,
    /,
    target: str,
    model_path: str,
    calibration_out: str | None,
    examples: tuple[str, ...],
) -> None:
    """Turn your own PyTorch module into a .pt2 file, and your calibration data into safetensors.

    FUNCTION is called without arguments. It returns a module (then give --example), or (module, example_inputs),
    or (module, example_inputs, calibration). Example inputs are a tensor, a tuple, or a mapping by name. Calibration
    is a mapping of whole tensors, or an iterable of batches such as a data loader; labels may come with it.

    The file is read back as the service reads it, and its outputs are compared with the module's.
    """
    out = output_of(context)
    with needs("worker"):
        import torch  # noqa: F401, PLC0415

        from app.export import export_model, stack_batches, write_dataset  # noqa: PLC0415
    module, example_inputs, calibration = _parts(_call(target), examples)
    if calibration_out is not None and calibration is None:
        raise click.UsageError(f"--calibration-out is given, but {target} returns no calibration data")
    exported = export_model(module, example_inputs, model_path)
    document: dict[str, Any] = asdict(exported) | {"path": str(exported.path)}
    if calibration_out is not None:
        inputs, labels = stack_batches(calibration, exported.input_names)
        _check_fits(exported.path, inputs, labels)
        shapes = write_dataset(calibration_out, inputs, labels)
        document["calibration"] = {
            "path": calibration_out,
            "tensors": {name: list(shape) for name, shape in shapes.items()},
        }
    out.document(document)
    if out.json_target is None:
        out.console.print(_words(document))


@click.command(
    cls=Command,
    examples=("bitwright pack smollm2/ --out smollm2.zip",),
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out", "target", type=click.Path(path_type=Path), help="Where to write; FOLDER.zip if not given."
)
@json_flag
@click.pass_context
def pack(context: click.Context, /, folder: Path, target: Path | None) -> None:
    """Pack a Hugging Face folder to the one file that the service reads.

    Its config.json and safetensors are packed, and nothing else. The same folder always gives the same bytes. The other
    commands pack folders by themselves; this is for uploads by other clients and for registering by location.
    """
    out = output_of(context)
    target = target or Path(f"{folder.resolve().name}.zip")
    pack_folder(folder, target)
    document = {"path": str(target), "size_bytes": target.stat().st_size}
    out.document(document)
    if out.json_target is None:
        out.console.print(f"[bold]{escape(str(target))}[/]: {quantities.size(8 * target.stat().st_size)}")


COMMANDS = (export, pack)


def _check_fits(model_path: Path, inputs: Mapping[str, Any], labels: Any | None) -> None:
    """Refuse now what the service would refuse later.

    Raises:
        DatasetRefused: Names, types, shapes or labels are not those of the model that was just written.
    """
    import torch  # noqa: PLC0415

    from app.datasets.rules import check_dataset  # noqa: PLC0415
    from workers.graph.describe import describe  # noqa: PLC0415
    from workers.intake.pt2 import read_model  # noqa: PLC0415

    values = {name: torch.as_tensor(value) for name, value in inputs.items()}
    tensors: dict[str, dict[str, Any]] = {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        for name, value in values.items()
    }
    if labels is not None:
        classes = torch.as_tensor(labels)
        tensors["labels"] = {"dtype": "int64", "shape": list(classes.shape)}
        if classes.numel():
            tensors["labels"]["maximum"] = int(classes.max())
    samples = max((value.shape[0] for value in values.values() if value.ndim), default=0)
    check_dataset(tensors, samples, describe(read_model(model_path)))


def _words(document: dict[str, Any]) -> str:
    batch = document["batch_size"]
    lines = [
        f"[bold]{escape(document['path'])}[/]: {document['units']} units, {quantities.count(document['weights'])} weights, "
        + ("any batch" if batch is None else f"always {batch} samples at once"),
        f"inputs (the keys of data files): {', '.join(document['input_names'])}",
        f"read back and compared: largest difference {quantities.number(document['largest_difference'])} of the outputs",
    ]
    if "calibration" in document:
        tensors = document["calibration"]["tensors"]
        listed = ", ".join(f"{name} {quantities.shape(shape)}" for name, shape in tensors.items())
        lines.append(f"[bold]{escape(document['calibration']['path'])}[/]: {listed}")
    lines += [f"[yellow]note:[/] {escape(notice)}" for notice in document["notices"]]
    return "\n".join(lines)


def _call(target: str) -> Any:
    """What the user's function returns."""
    module_name, colon, function_name = target.rpartition(":")
    if not colon or not module_name or not function_name:
        raise click.UsageError(f"{target!r} is not MODULE:FUNCTION or FILE.py:FUNCTION")
    with _importable(module_name), _users_errors(target):
        module = _module(module_name)
        function = getattr(module, function_name, None)
        if not callable(function):
            raise click.UsageError(f"{module_name} has no function {function_name!r}")
        return function()


@contextmanager
def _users_errors(target: str) -> Iterator[None]:
    """An error in the user's code is shown with its traceback, and called what it is."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        print_exc()
        document = {
            "type": "urn:bitwright:problem:module-error",
            "title": "The module's own code failed",
            "status": 422,
            "detail": f"{target} raised {type(error).__name__}: {error}",
            "field": "target",
            "value": target,
        }
        raise Stopped(document, Exit.DEFECT) from error


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the user's module is there, something that it imports is not
            raise click.UsageError(f"there is no module {name!r}") from error
    path = Path(name)
    if not path.is_file():
        raise click.UsageError(f"there is no file {name!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(module_name: str) -> Iterator[None]:
    """What the file imports from its own folder, or the module from the working directory, is found."""
    folder = str(Path(module_name).resolve().parent if module_name.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _parts(returned: Any, examples: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """Module, example inputs, calibration data or ``None``."""
    from torch import nn  # noqa: PLC0415

    values = returned if isinstance(returned, tuple) else (returned,)
    if not values or len(values) > 3 or not isinstance(values[0], nn.Module):
        kinds = ", ".join(type(value).__name__ for value in values)
        raise click.UsageError(
            f"the function returned ({kinds}); it must return a torch.nn.Module, optionally followed by example "
            "inputs and calibration data"
        )
    if examples:
        return values[0], _example_inputs(examples), values[2] if len(values) == 3 else None
    if len(values) == 1:
        raise click.UsageError(
            "the function returns a module alone; give its inputs by --example, e.g. 2x3x224x224"
        )
    return values[0], values[1], values[2] if len(values) == 3 else None


def _example_inputs(texts: tuple[str, ...]) -> Any:
    """Tensors of the shapes asked for: normal values for floats, zeros for whole numbers (indices fit any table)."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(0)
    made: list[tuple[str | None, Any]] = []
    for text in texts:
        match = _EXAMPLE.fullmatch(text)
        dtype = getattr(torch, match["dtype"] or "float32", None) if match else None
        if match is None or not isinstance(dtype, torch.dtype):
            raise click.BadParameter(
                f"{text!r} is not [NAME=]SHAPE[:DTYPE], e.g. 2x3x224x224 or ids=2x128:int64"
            )
        shape = [int(size) for size in match["shape"].split("x")]
        value = torch.randn(shape, generator=generator).to(dtype)
        made.append((match["name"], value if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)))
    if all(name is None for name, _ in made):
        return tuple(value for _, value in made)
    if any(name is None for name, _ in made):
        raise click.BadParameter("name all examples or none")
    named: Mapping[str | None, Any] = dict(made)
    return named
