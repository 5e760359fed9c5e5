"""Reading a ``.pt2`` file (torch.export) as data.

``torch.export.load`` runs code from the file by several routes (pickled weights and example inputs, opaque constants,
symbolic sizes handed to ``sympify``); it is never called here. The archive, its JSON, its symbolic expressions and
its raw tensor bytes are read by our own code, and whatever is not on a list is refused by name.
"""

from pathlib import Path
from typing import Final

from workers.graph.model import GraphModel
from workers.intake.assembly import assemble
from workers.intake.contents import MODEL, open_model
from workers.intake.jsontext import parse_json
from workers.intake.limits import Limits
from workers.intake.payload import Payload

_DEFAULT_LIMITS: Final = Limits()


def read_model(path: Path, limits: Limits = _DEFAULT_LIMITS) -> GraphModel:
    """Read a model file without running anything in it.

    Args:
        path: A ``.pt2`` file.
        limits: Bounds on what the file may ask for.

    Returns:
        The model, functional (no operator writes into its arguments), checked on tensors without memory. Its
        tensors map the file, which must not change while they live.

    Raises:
        ModelRefused: The file breaks a rule; ``field`` names the entry or node, ``extra["rule"]`` the rule.
        OSError: The file cannot be read.
    """
    archive = open_model(path, limits)
    program = parse_json(archive.read(MODEL), MODEL, limits)
    payload = Payload(archive, limits)
    return assemble(program, payload.read("weights"), payload.read("constants"), limits)
