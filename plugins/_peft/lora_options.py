"""The options that `lora` and `dora` share: which modules get an update, how large, and what trains beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.core.options import option


@dataclass(frozen=True, kw_only=True)
class LowRankOptions:
    """Options of the adapters that add B A to a weight."""

    rank: int = option(16, "Rank of the update: the thin side of its two matrices.", ge=1)
    alpha: float | None = option(
        None, "The update is scaled by alpha / rank; null stands for twice the rank of each module.", gt=0
    )
    rslora: bool = option(False, "Scale by alpha / sqrt(rank) (rsLoRA); needs `alpha`.")
    dropout: float = option(0.0, "Dropout on the input of the update.", ge=0, lt=1)
    target: tuple[str, ...] = option(
        ("all",),
        "What to adapt: roles or role groups (`attn`, `mlp.down`, `mixer`, ...), ends of module names (`q_proj`) or "
        "patterns for whole names; `all` is every linear projection of the decoder layers, routed experts excepted.",
    )
    exclude: tuple[str, ...] = option((), "What to leave out of `target`, in the same words.")
    layers: tuple[int, ...] | None = option(
        None, "Decoder layers to adapt, negative ones counted from the end; null for all of them."
    )
    rank_pattern: Mapping[str, int] = option(
        factory=dict,
        doc="Other ranks for some modules: {word: rank}, words as in `target`; the one that means the fewest decides.",
        ge=1,
    )
    alpha_pattern: Mapping[str, float] = option(factory=dict, doc="Other alphas for some modules, in the same way.", gt=0)
    bias: Literal["none", "all", "lora_only"] = option(
        "none", "Biases of the model that train as well: `lora_only` those of the adapted modules."
    )
    modules_to_save: tuple[str, ...] = option(
        (), "Modules that train and are saved in whole, by role or name: `embed`, `head`, `norm`, ..."
    )
    trainable_tokens: tuple[int | str, ...] = option(
        (), "Tokens (as text, or as ids) whose rows of the embeddings and of the head train, and no other row."
    )
    new_tokens: bool = option(False, "Train the rows of all tokens that the run's patches added to the vocabulary.")
    continue_from: str | None = option(
        None,
        "Folder of a saved adapter (a run's output) whose weights the training starts from; rank and targets must agree.",
    )

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("target names no role; write for example [attn, mlp]")
        if self.rslora and self.alpha is None:
            raise ValueError("rslora needs alpha: the update is scaled by alpha / sqrt(rank), for example alpha: 16")
        for name, values in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            if any(value <= 0 for value in values.values()):
                raise ValueError(f"{name}: values must be greater than 0")
