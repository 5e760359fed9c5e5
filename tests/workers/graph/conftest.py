import warnings

import pytest
import torch

from workers.contracts import InputInfo
from workers.graph.model import GraphModel
from workers.intake.pt2 import read_model

# Both ways to a model share one export of a module (kept alive here, so that its id stays its own).
_EXPORTED = {}


def export(module, inputs, *, dynamic=True):
    """Export with a batch of any size (or with the batch of the inputs)."""
    known = _EXPORTED.get((id(module), dynamic))
    if known is not None:
        return known[1]
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = tuple({0: batch} for _ in inputs) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers flatten their weights while exported
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    _EXPORTED[id(module), dynamic] = module, program
    return program


def in_memory(program):
    """A GraphModel straight from an export: the reader's independent twin, for graphs without in-place operators."""
    kinds = torch.export.graph_signature.InputKind
    tensors, names, parameters, inputs, symbols = {}, {}, set(), [], {}
    batch_size = None
    graph = torch.fx.Graph()
    nodes = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        copy = nodes[node] = graph.node_copy(node, nodes.__getitem__)
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            copy.meta = {"shape": tuple(_size(size) for size in value.shape), "dtype": value.dtype}
        if node.op == "output":
            copy.args = (tuple(copy.args[0]),)
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind is kinds.USER_INPUT:
            shape = [None if isinstance(size, torch.SymInt) else size for size in value.shape]
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    symbols.setdefault(str(size.node.expr), (len(inputs), axis))
            batch_size = shape[0]
            dtype = str(value.dtype).removeprefix("torch.")
            inputs.append(InputInfo(name=node.name, dtype=dtype, shape=tuple(shape)))
            continue
        stored = program.state_dict if spec.target in program.state_dict else program.constants
        tensors[node.name], names[node.name] = stored[spec.target].detach(), spec.target
        if spec.kind is kinds.PARAMETER:
            parameters.add(node.name)
    return GraphModel(
        graph=graph,
        tensors=tensors,
        qualified_names=names,
        parameters=frozenset(parameters),
        inputs=tuple(inputs),
        batch_size=batch_size,
        symbols=symbols,
    )


def _size(size):
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr
    return lambda symbols: int(expression.subs({s: symbols[s.name] for s in expression.free_symbols}))


@pytest.fixture
def exported_graph_of():
    """From the export in memory only: for operators that our reader refuses in files."""
    return lambda module, inputs, *, dynamic=True: in_memory(export(module, inputs, dynamic=dynamic))


@pytest.fixture(params=["exported", "reloaded"])
def graph_of(request, tmp_path):
    """Both ways to a GraphModel: from the export in memory, and saved and read back by our reader."""

    def build(module, inputs, *, dynamic=True):
        program = export(module, inputs, dynamic=dynamic)
        if request.param == "exported":
            return in_memory(program)
        path = tmp_path / "model.pt2"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about parameters that share memory
            torch.export.save(program, path)
        return read_model(path)

    return build


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from more, and suffer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
