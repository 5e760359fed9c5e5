"""The common form of a model: one FX graph over aten operators, with its tensors.

Every intake ends here and everything that computes starts here.
"""

from dataclasses import dataclass

import torch

from workers.contracts import InputInfo


@dataclass(frozen=True, kw_only=True)
class GraphModel:
    """A model as data.

    Args:
        graph: ``placeholder`` nodes, ``call_function`` nodes whose targets are aten overloads or a few
            ``operator`` functions, one ``output`` node whose argument is a flat tuple of nodes. Each tensor-valued
            node has ``meta["shape"]``: a tuple of ints, or of callables ``f(symbols: dict[str, int]) -> int`` for
            symbolic sizes, and ``meta["dtype"]``. Nodes with several outputs are followed by ``operator.getitem``.
        tensors: Placeholder name -> tensor, for parameters, buffers and constants. Names that share storage in
            the file share storage here (ties survive).
        qualified_names: Placeholder name -> the parameter's or buffer's qualified name, for the keys of ``tensors``.
        parameters: The placeholder names that are parameters (not buffers or constants).
        inputs: User inputs in the order of the signature; ``name`` is the placeholder's name.
        batch_size: The exported batch if it is fixed, ``None`` if any batch may be fed.
        symbols: Symbolic size name -> (input index, axis) from which it is read when running.
    """

    graph: torch.fx.Graph
    tensors: dict[str, torch.Tensor]
    qualified_names: dict[str, str]
    parameters: frozenset[str]
    inputs: tuple[InputInfo, ...]
    batch_size: int | None
    symbols: dict[str, tuple[int, int]]
