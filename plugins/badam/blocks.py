"""The blocks of BAdam: what trains, cut by decoder layer."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from torch import nn

from luthier.core.contracts import NothingPatched
from luthier.core.optimizing import trained_parameters

Block = tuple[nn.Parameter, ...]


def cut(model: nn.Module, decoder: str, *, layers: int, outside: bool, heads: Collection[str] = ()) -> list[Block]:
    """The parameters that train, in blocks: `layers` neighbouring layers of the list `decoder` each, in their order.

    With `outside`, every matrix beside the layers is a block of its own, embeddings before the layers, the head after them;
    without it, these matrices are frozen, but for the modules `heads`, which are new and have to train. Vectors beside the
    layers, as the last norm, go with the last block. Raises NothingPatched when nothing is left to train.
    """
    pattern = re.compile(rf"(?:^|\.){re.escape(decoder)}\.(\d+)\.")
    before: list[Block] = []
    inside: dict[int, list[nn.Parameter]] = {}
    after: list[Block] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in trained_parameters(model).items():
        found = pattern.search(name)
        if found:
            inside.setdefault(int(found[1]), []).append(parameter)
        elif parameter.ndim < 2:
            vectors.append(parameter)
        elif outside or name.rpartition(".")[0] in heads:
            (after if inside else before).append((parameter,))
        else:
            parameter.requires_grad_(False)
    blocks = [*before, *_joined([inside[number] for number in sorted(inside)], layers), *after]
    if not blocks and not vectors:
        raise NothingPatched("badam: nothing trains in the decoder layers; set `embeddings: true`, or train some layer")
    return [*blocks[:-1], (*(blocks[-1] if blocks else ()), *vectors)]


def _joined(layers: Sequence[list[nn.Parameter]], size: int) -> list[Block]:
    """Neighbouring layers together, `size` at a time; the last block may have fewer."""
    return [tuple(one for layer in layers[start : start + size] for one in layer) for start in range(0, len(layers), size)]
