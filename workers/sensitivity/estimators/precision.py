"""The precision that probes compute matrix products in.

Estimates carry the noise of random signs, 10 to 30 %; rounding products to bfloat16 adds some tenths of a percent and
halves their time where the processor multiplies in it. Nothing but the products is rounded: sums, norms, softmax, attention
and what goes from step to step stay in the model's precision. Convolutions stay too: on CPUs their backward is not faster
(EfficientNet-Lite0, torch 2.13: 1.2 times the time), and of attention it takes 3.5 times as long.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from workers.graph.dataflow import operator_name
from workers.graph.program import Step

_PRODUCTS = frozenset(("linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "einsum"))
_NATIVE = ("avx512_bf16", "amx_bf16", "bf16")
"""What processors call it (x86; Arm)."""


def native_half(device: torch.device) -> torch.dtype | None:
    """``torch.bfloat16`` where the device multiplies matrices in it faster than in float32, else ``None``."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu":
        return None
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(capabilities.get(name) for name in _NATIVE) else None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How steps are computed.

    Args:
        device: Where.
        products: What float32 matrix products are rounded to; ``None``: they are not.
    """

    device: torch.device
    products: torch.dtype | None = None

    def call(self, step: Step, value: Callable[[Node], Any]) -> Any:
        """The step's result, in the precision that it has without rounding."""
        if self.products is None or operator_name(step.node) not in _PRODUCTS:
            return step.call(value)
        with torch.autocast(self.device.type, dtype=self.products):
            result = step.call(value)
        return result.float() if isinstance(result, Tensor) and result.dtype is self.products else result

    def rounded(self, factor: Tensor) -> Tensor:
        """A factor of a matrix product."""
        return (
            factor if self.products is None or factor.dtype is not torch.float32 else factor.to(self.products)
        )
