"""`eager`: attention in plain matrix products, the reference that other kernels are compared with."""

from __future__ import annotations

from collections.abc import Iterable

from luthier.core.contracts import AttentionKernel
from luthier.core.hookspecs import hookimpl
from luthier.core.options import NoOptions


@hookimpl
def luthier_attention_kernels() -> Iterable[AttentionKernel[NoOptions]]:
    yield AttentionKernel(
        name="eager",
        summary="Plain matrix products; works with every model.",
        claims=frozenset({"attention.forward"}),
        implementation="eager",
        priority=10,
        reference="Vaswani et al. 2017, Attention Is All You Need, section 3.2.1, arXiv:1706.03762",
    )
