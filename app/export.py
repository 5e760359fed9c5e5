"""Turn your own PyTorch module into the files the service reads: a ``.pt2`` model and a safetensors data file.

This runs on the user's machine, on the user's own code; the service itself never calls `torch.export`. Torch is
imported inside the functions, so that the base install (client and command line) can import this module.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from workers.contracts import ModelDescription
from workers.errors import DatasetRefused, ModelRefused

if TYPE_CHECKING:
    import torch

    Inputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...] | Mapping[str, torch.Tensor]

LABELS = "labels"
VERIFIED_BATCHES = (1, 3)
"""Batches other than the example's on which the re-read file is compared with the module."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """What an export gave.

    Args:
        path: The ``.pt2`` file.
        input_names: In the order of the module's signature: the keys of the data files.
        batch_size: The only batch the file accepts, ``None`` if any batch may be fed.
        units: Number of units whose bit-width can be chosen.
        weights: Number of their weights.
        largest_difference: Between the module's outputs and the re-read file's, over the largest output magnitude.
        notices: What the user should know, in sentences.
    """

    path: Path
    input_names: tuple[str, ...]
    batch_size: int | None
    units: int
    weights: int
    largest_difference: float
    notices: tuple[str, ...]


def export_model(
    module: "torch.nn.Module", example_inputs: "Inputs", path: str | os.PathLike[str]
) -> ExportedModel:
    """Write a module as ``.pt2``, in evaluation mode and for any batch where the module allows it.

    The file is read back with the service's own reader and must reproduce the module's outputs on the example
    and, where any batch is accepted, on batches of 1 and 3. The module is left as it came.

    Args:
        module: On the CPU. Dropout and batch normalization are exported as in evaluation.
        example_inputs: A tensor, a tuple of positional tensors, or a mapping of keyword tensors; the first axis
            of each is the samples' axis.
        path: Where to write; an existing file is replaced only after everything was verified.

    Returns:
        What was written, with the names to use as keys of the data files.

    Raises:
        ModelRefused: The inputs do not fit, `torch.export` cannot trace the module, the service would refuse
            the file, or its outputs differ from the module's.
    """
    args, kwargs = _split_inputs(module, example_inputs)
    _check_on_cpu(module)
    target = Path(path)
    if target.suffix != ".pt2":
        raise ModelRefused(
            f"{target.name!r} does not end in .pt2", "path", str(path), "a name ending in .pt2"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.partial.pt2")
    notices: list[str] = []
    with _evaluation_mode(module, notices):
        program, args, kwargs, dynamic = _export(module, args, kwargs, notices)
        try:
            _save(program, partial)
            description, difference = _verify(module, args, kwargs, partial, dynamic=dynamic)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return ExportedModel(
        path=target,
        input_names=tuple(item.name for item in description.inputs),
        batch_size=description.batch_size,
        units=len(description.units),
        weights=description.weights,
        largest_difference=difference,
        notices=tuple(notices),
    )


def write_dataset(
    path: str | os.PathLike[str], inputs: Mapping[str, Any], labels: Any | None = None
) -> dict[str, tuple[int, ...]]:
    """Write samples as safetensors: one tensor for each model input, first axis = samples.

    Args:
        path: Where to write; replaced in one step.
        inputs: Input name -> tensor or array of shape ``(samples, ...)``; the names `export_model` returned.
        labels: Class indices of shape ``(samples,)`` or ``(samples, tokens)``; needed by the metric ``loss`` only.

    Returns:
        The shape of each tensor written.

    Raises:
        DatasetRefused: No input, no samples, different numbers of samples, a value that is not finite, or labels
            that are no whole numbers.
    """
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    tensors = {name: torch.as_tensor(value).detach().cpu() for name, value in inputs.items()}
    if not tensors:
        raise DatasetRefused("no inputs were given", "inputs", [], "one tensor for each input of the model")
    if LABELS in tensors:
        raise DatasetRefused(
            f"an input may not be called {LABELS!r}; pass labels by their own argument", "inputs", LABELS
        )
    if labels is not None:
        classes = torch.as_tensor(labels).detach().cpu()
        if classes.is_floating_point() or classes.is_complex():  # a cast would make class 0 of a probability
            raise DatasetRefused(
                f"the labels are {classes.dtype}; they are class numbers",
                LABELS,
                str(classes.dtype),
                "integers",
            )
        tensors[LABELS] = classes.to(torch.int64)
    _check_samples(tensors)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, partial)
        partial.chmod(0o644)  # safetensors makes files that only their owner can read
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def stack_batches(
    batches: Iterable[Any] | Mapping[str, Any], input_names: tuple[str, ...]
) -> tuple[dict[str, Any], Any | None]:
    """Join batches, as a data loader gives them, to one tensor for each input.

    Args:
        batches: Either a mapping of whole tensors, or an iterable of batches. A batch is a tensor, a mapping by
            input name (optionally with ``labels``), or a tuple in the order of the inputs, optionally one longer:
            the last one is then the labels.
        input_names: As `export_model` returned them.

    Returns:
        Input name -> tensor, and the labels or ``None``.

    Raises:
        DatasetRefused: A batch has other inputs than the model, or there is no batch.
    """
    import torch  # noqa: PLC0415

    parts: dict[str, list[Any]] = {}
    for batch in [batches] if isinstance(batches, Mapping) else batches:
        for name, value in _named(batch, input_names).items():
            parts.setdefault(name, []).append(torch.as_tensor(value).detach().cpu())
    if not parts:
        raise DatasetRefused("the calibration data holds no batch", "calibration", 0, "at least one batch")
    counts = {name: len(values) for name, values in parts.items()}
    if len(set(counts.values())) != 1:
        raise DatasetRefused(
            "some batches lack an input", "calibration", counts, "the same keys in each batch"
        )
    joined = {name: torch.cat(values) for name, values in parts.items()}
    labels = joined.pop(LABELS, None)
    return joined, labels


def _named(batch: Any, input_names: tuple[str, ...]) -> dict[str, Any]:
    """One batch by name."""
    if isinstance(batch, Mapping):
        named = dict(batch)
    else:
        values = list(batch) if isinstance(batch, tuple | list) else [batch]
        with_labels = len(values) == len(input_names) + 1
        named = dict(zip((*input_names, LABELS) if with_labels else input_names, values, strict=False))
        if len(values) != len(named):
            raise DatasetRefused(
                f"a batch of {len(values)} values does not fit {len(input_names)} inputs",
                "calibration",
                len(values),
                f"{list(input_names)}, optionally followed by labels",
            )
    if set(named) - {LABELS} != set(input_names):
        raise DatasetRefused(
            "a batch does not have the model's inputs", "calibration", sorted(named), list(input_names)
        )
    return named


def _check_samples(tensors: "Mapping[str, torch.Tensor]") -> None:
    samples = {name: tensor.shape[0] if tensor.ndim else None for name, tensor in tensors.items()}
    if None in samples.values() or len(set(samples.values())) != 1:
        raise DatasetRefused(
            "the tensors differ in their number of samples",
            "inputs",
            samples,
            "the same first axis everywhere",
        )
    if 0 in samples.values():
        raise DatasetRefused("there are no samples", "inputs", samples, "at least one sample")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DatasetRefused(
                f"{name!r} holds NaN or infinite values", name, "NaN or Inf", "finite values"
            )


def _split_inputs(module: "torch.nn.Module", example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword tensors, checked to share a samples' axis."""
    import torch  # noqa: PLC0415

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Mapping):
        # In the signature's order, so that the same module always gives the same file.
        order = [*signature(module.forward).parameters]
        kwargs = dict(sorted(example.items(), key=lambda item: (*order, item[0]).index(item[0])))
    else:
        args = tuple(example) if isinstance(example, tuple | list) else (example,)
    values = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    for name, value in values.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            raise ModelRefused(
                f"example input {name} is not a tensor with a samples' axis",
                "example_inputs",
                type(value).__name__,
                "tensors of shape (samples, ...); wrap a module that takes anything else",
            )
    sizes = {name: value.shape[0] for name, value in values.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ModelRefused(
            "the example inputs do not share one samples' axis",
            "example_inputs",
            sizes,
            "the same first axis, at least 1",
        )
    return args, kwargs


def _samples(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The number of samples in checked inputs."""
    return int(next(iter([*args, *kwargs.values()])).shape[0])


def _check_on_cpu(module: "torch.nn.Module") -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device.type != "cpu":
            raise ModelRefused(
                f"{name!r} is on {tensor.device}; call module.cpu() first", name, str(tensor.device), "cpu"
            )


@contextmanager
def _evaluation_mode(module: "torch.nn.Module", notices: list[str]) -> Iterator[None]:
    """Everything in evaluation mode; the flags are put back at the end."""
    training = [part for part in module.modules() if part.training]
    if training:
        notices.append("The module was in training mode; it is exported in evaluation mode.")
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _export(
    module: "torch.nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], notices: list[str]
) -> tuple[Any, tuple[Any, ...], dict[str, Any], bool]:
    """The exported program, the inputs it was traced with, and whether it accepts any batch."""
    import torch  # noqa: PLC0415
    from torch.export import Dim, export  # noqa: PLC0415

    single = _samples(args, kwargs) == 1
    # A batch of 1 would be taken for a constant: sizes 0 and 1 are always specialised.
    wide_args = tuple(torch.cat([value, value]) for value in args) if single else args
    wide_kwargs = {k: torch.cat([v, v]) for k, v in kwargs.items()} if single else kwargs
    batch = Dim("batch", min=1)
    shapes = ([{0: batch} for _ in args], {name: {0: batch} for name in kwargs})
    dynamic_shapes = shapes[1] if kwargs else tuple(shapes[0])
    try:
        program = export(module, wide_args, wide_kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as any_batch:  # noqa: BLE001 - torch.export raises many kinds; the static export decides
        try:
            program = export(module, args, kwargs, strict=False)
        except Exception as error:
            raise ModelRefused(
                f"torch.export cannot trace the module: {_first_line(error)}", "module", type(module).__name__
            ) from error
        notices.append(
            f"The module does not work for every batch ({_first_line(any_batch)}); the file always takes "
            f"{_samples(args, kwargs)} samples at once."
        )
        return program, args, kwargs, False
    return program, wide_args, wide_kwargs, True


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _save(program: Any, path: Path) -> None:
    import torch  # noqa: PLC0415

    program.example_inputs = None  # they would be stored as a pickle, which the service refuses
    torch.export.save(program, path)


def _verify(
    module: "torch.nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], path: Path, *, dynamic: bool
) -> tuple[ModelDescription, float]:
    """Read the file as the service does and compare outputs; the description and the largest relative difference."""
    from workers.graph.describe import describe  # noqa: PLC0415
    from workers.graph.program import Program  # noqa: PLC0415
    from workers.intake.pt2 import read_model  # noqa: PLC0415

    model = read_model(path)
    description = describe(model)
    program = Program(model)
    keywords = [item.name for item in description.inputs[len(args) :]]
    if sorted(keywords) != sorted(kwargs):
        raise ModelRefused(
            "the exported inputs are not the example's", "example_inputs", sorted(kwargs), sorted(keywords)
        )
    size = _samples(args, kwargs)
    largest = 0.0
    for batch in (size, *(VERIFIED_BATCHES if dynamic else ())):
        some = [_take(value, batch) for value in args]
        named = {name: _take(value, batch) for name, value in kwargs.items()}
        difference = _difference(module, program, some, named, keywords)
        largest = max(largest, difference)
    return description, largest


def _take(value: "torch.Tensor", batch: int) -> "torch.Tensor":
    """So many samples, the given ones over and over."""
    import torch  # noqa: PLC0415

    return value[torch.arange(batch) % value.shape[0]]


def _difference(
    module: "torch.nn.Module", program: Any, args: list[Any], kwargs: dict[str, Any], keywords: list[str]
) -> float:
    """Largest difference between module and file over the largest output magnitude.

    Raises:
        ModelRefused: It is larger than rounding explains, or the outputs do not have the same shapes.
    """
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415 - torch.export flattens outputs with it

    with torch.no_grad():
        leaves = _pytree.tree_leaves(module(*args, **kwargs))
    expected = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    outputs = program.run([*args, *(kwargs[name] for name in keywords)])
    actual = [leaf for leaf in outputs if isinstance(leaf, torch.Tensor)]
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise ModelRefused(
            "the exported file gives outputs of other shapes than the module", "outputs", shapes[1], shapes[0]
        )
    largest = 0.0
    for one, other in zip(expected, actual, strict=True):
        if not one.numel():
            continue
        scale = max(one.double().abs().max().item(), torch.finfo(torch.float32).tiny)
        difference = (one.double() - other.double()).abs().max().item() / scale
        epsilon = torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
        if not difference <= epsilon**0.5:
            raise ModelRefused(
                f"the exported file does not reproduce the module's outputs for a batch of {_samples(args, kwargs)}: "
                f"they differ by {difference:.2g} of the largest one; is there randomness in its forward pass?",
                "outputs",
                difference,
                f"at most {epsilon**0.5:.2g}",
            )
        largest = max(largest, difference)
    return largest
