"""Set the precision of a graph. A float16 graph keeps its LayerNorms in float32."""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Precision = Literal["fp32", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def in_precision(module: nn.Module, precision: Precision) -> nn.Module:
    """Return the module to trace: itself for float32, or a copy in float16 with its LayerNorms in float32."""
    if precision == "fp32":
        return module
    half = copy.deepcopy(module)
    norms = [(parent, name, child) for parent in half.modules() for name, child in parent.named_children()]
    half.half()
    for parent, name, child in norms:
        if isinstance(child, nn.LayerNorm):
            setattr(parent, name, Float32LayerNorm(child))
    return half


class Float32LayerNorm(nn.Module):
    """LayerNorm computed in float32 between float16 tensors, because squares of float16 activations overflow."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)
