"""The nearest orthogonal matrix, nearly: Newton-Schulz iterations on many matrices at once.

    X <- X / |X|          then, `steps` times,     X <- a X + b (X X^T) X + c (X X^T)^2 X

keeps the singular vectors of X and drives its singular values towards 1. The coefficients are Jordan's, chosen to lift small
singular values fast: after five steps they lie between about 0.7 and 1.2, not at 1 (https://kellerjordan.github.io/posts/muon/).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
EPS: Final = 1e-7
# Enough for a direction, and the fast format of the devices that train large models; the reference computes in it, too.
COMPUTE: Final = torch.bfloat16


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """(A, B) or (n, A, B) of any floating format -> the same shape in bfloat16; a matrix of zeros stays one."""
    a, b, c = COEFFICIENTS
    x = matrices.to(COMPUTE).reshape(-1, *matrices.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)
