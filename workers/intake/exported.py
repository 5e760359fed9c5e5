"""Programs that were exported from Hugging Face folders, kept beside the folder's artifact for other processes.

Exporting takes seconds to a quarter of a minute, and every worker process needs it. What is kept is what the export
gave, before it was read: torch's JSON form of the program, which tensor of the folder each parameter is, and the tensors
that lie in no file (rotation frequencies, fused or converted weights). All of it is data in the safetensors format
behind its own hash; it goes through the same reader and the same checks as a ``.pt2`` file, each time.

Only files of the artifact store have company: they are named by the hash of their content, and their directory is the
service's. An entry is for one release of torch, transformers and this exporter; the others of its artifact go when
it is written.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save
from torch import Tensor

EXPORTER_VERSION: Final = 1
"""Raised whenever the same folder would be exported as another program."""
MOST_BYTES: Final = 64 << 20
"""Larger exports are not kept: they hold converted weights, and reading them would be no gain."""

_ARTIFACT: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST: Final = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Exported:
    """What exporting a folder gives.

    Args:
        program: torch's JSON form of the program.
        weights: Qualified name -> tensor, for parameters and buffers; tied ones share memory.
        constants: Likewise for what is not stored.
        output: Name of the output.
    """

    program: bytes
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]
    output: str

    def to_bytes(self, stored: dict[str, Tensor]) -> bytes:
        """As it is kept: without the tensors that the folder holds.

        Args:
            stored: The folder's tensors by name, over the same memory as those of them that are weights.
        """
        places = {_place(tensor): name for name, tensor in stored.items() if tensor.numel()}
        own: dict[str, Tensor] = {}
        kept: dict[tuple[object, ...], str] = {}
        sources: dict[str, dict[str, list[str]]] = {"weights": {}, "constants": {}}
        for kind, tensors in (("weights", self.weights), ("constants", self.constants)):
            for name, tensor in tensors.items():
                place = _place(tensor)
                if tensor.numel() and place in places:
                    sources[kind][name] = ["folder", places[place]]
                    continue
                key = kept.setdefault(place, str(len(own))) if tensor.numel() else str(len(own))
                own.setdefault(key, tensor.detach().clone(memory_format=torch.contiguous_format))
                sources[kind][name] = ["own", key]
        index = json.dumps({"output": self.output, **sources}).encode()
        return save(own | {"program": _as_tensor(self.program), "index": _as_tensor(index)})

    @classmethod
    def from_bytes(cls, data: bytes, stored: dict[str, Tensor]) -> Self:
        """Inverse of `to_bytes`, with the tensors of the same folder.

        Raises:
            SafetensorError, ValueError, KeyError, TypeError: The bytes are not what `to_bytes` gives.
        """
        own = read_tensors(data)
        index = json.loads(own["index"].numpy().tobytes())

        def found(kind: str) -> dict[str, Tensor]:
            return {
                name: (stored if where == "folder" else own)[key]
                for name, (where, key) in index[kind].items()
            }

        return cls(
            program=own["program"].numpy().tobytes(),
            weights=found("weights"),
            constants=found("constants"),
            output=index["output"],
        )


class ExportCache:
    """Where the export of one folder is kept, if anywhere.

    Args:
        artifact: The packed folder.
    """

    def __init__(self, artifact: Path) -> None:
        self._artifact = artifact
        self.path = _path_beside(artifact)

    def restore(self, stored: dict[str, Tensor]) -> Exported | None:
        """The export, if it is there and whole.

        Args:
            stored: The folder's tensors by name.
        """
        if self.path is None:
            return None
        try:
            if self.path.stat().st_size > MOST_BYTES:
                return None
            data = self.path.read_bytes()
        except OSError:
            return None
        digest, content = data[:_DIGEST], data[_DIGEST:]
        if sha256(content).hexdigest().encode() != digest:
            return None
        try:
            return Exported.from_bytes(content, stored)
        except (SafetensorError, ValueError, KeyError, TypeError):
            return None

    def keep(self, exported: Exported, stored: dict[str, Tensor]) -> None:
        """Keep an export that went through the reader. Where nothing can be written, nothing is kept."""
        if self.path is None:
            return
        content = exported.to_bytes(stored)
        if len(content) + _DIGEST > MOST_BYTES:
            return
        temporary = self.path.with_name(f"{self.path.name}.{uuid4().hex}")
        try:
            temporary.write_bytes(sha256(content).hexdigest().encode() + content)
            temporary.replace(self.path)
            for other in self.path.parent.glob(f"{self._artifact.name}.export-*"):
                if other != self.path:
                    other.unlink(missing_ok=True)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _path_beside(artifact: Path) -> Path | None:
    if not _ARTIFACT.fullmatch(artifact.name):
        return None
    try:
        versions = [EXPORTER_VERSION, torch.__version__, version("transformers")]
    except PackageNotFoundError:
        return None  # the reader says that it is needed
    key = sha256(json.dumps(versions).encode()).hexdigest()[:16]
    return artifact.with_name(f"{artifact.name}.export-{key}")


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
