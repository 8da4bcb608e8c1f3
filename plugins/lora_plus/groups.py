"""Which of the trained parameters are A, B, or neither: the groups of LoRA+."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from luthier.core.contracts import NothingPatched
from luthier.core.optimizing import trained_parameters

if TYPE_CHECKING:
    from luthier.plugins.lora_plus import LoraPlusConfig


def lora_plus_groups(model: nn.Module, config: LoraPlusConfig) -> list[dict[str, Any]]:
    """Parameter groups, those at `lr` first: A and other matrices, vectors, B, updates of embeddings; none empty.

    DoRA's magnitudes, biases and whole modules that train beside the update keep `lr`: the paper's argument for the ratio is
    about B. Matrices are decayed. Raises NothingPatched where no B trains.
    """
    plain: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    raised: list[nn.Parameter] = []
    embeddings: list[nn.Parameter] = []
    for name, parameter in trained_parameters(model).items():
        if ".lora_embedding_A." in name or ".lora_embedding_B." in name:
            embeddings.append(parameter)
        elif parameter.ndim < 2:
            vectors.append(parameter)
        elif ".lora_B." in name:
            raised.append(parameter)
        else:
            plain.append(parameter)
    if not raised and not embeddings:
        raise NothingPatched("lora_plus: no parameter that trains is the B of a low-rank update; take `adamw`")
    groups = [
        {"params": plain, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": vectors, "lr": config.lr, "weight_decay": 0.0},
        {"params": raised, "lr": config.lr * config.ratio, "weight_decay": config.weight_decay},
        {"params": embeddings, "lr": config.embedding_lr, "weight_decay": config.weight_decay},
    ]
    return [group for group in groups if group["params"]]
