"""The architecture of a model as a value: what each module is *for*, and how big it is.

Methods ask for roles ("attn.q", "mlp.down"), never for names like `q_proj`. A profile is read from the model's
configuration alone, on the meta device (`luthier.registry.detect`); no weight is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from luthier.core.frozen import FrozenDict
from luthier.core.traits import Trait

ROLES: Final[dict[str, str]] = {
    "attn.q": "query projection (or its up-projection, in latent attention)",
    "attn.k": "key projection",
    "attn.v": "value projection",
    "attn.qkv": "queries, keys and values in one projection",
    "attn.kv": "keys and values in one projection",
    "attn.q_down": "down-projection of the queries, in latent attention",
    "attn.kv_down": "down-projection of keys and values, in latent attention",
    "attn.kv_up": "up-projection of keys and values, in latent attention",
    "attn.qk": "queries and keys in one projection, which are then equal",
    "attn.o_down": "first of two output projections of attention",
    "attn.o": "output projection of attention",
    "attn.gate": "gate on what attention puts out",
    "attn.index": "chooses or compresses the keys that are attended to, in sparse attention",
    "attn.position": "relative positions inside attention",
    "attn.sink": "logits of attention sinks, where they are projected",
    "attn.conv": "short convolution over queries, keys or values",
    "cross.q": "query projection of cross-attention",
    "cross.k": "key projection of cross-attention",
    "cross.v": "value projection of cross-attention",
    "cross.o": "output projection of cross-attention",
    "mlp.gate": "gate of a gated MLP",
    "mlp.up": "up-projection (the first matrix) of an MLP",
    "mlp.gate_up": "gate and up-projection in one",
    "mlp.down": "down-projection (the last matrix) of an MLP",
    "mlp.experts.gate_up": "gate and up-projection of all experts, one 3-D parameter",
    "mlp.experts.down": "down-projection of all experts, one 3-D parameter",
    "mlp.experts": "expert weights of any other form",
    "mlp.router": "chooses the experts of a token",
    "mlp.shared_gate": "weighs the shared expert",
    "mixer": "projections of a state-space, linear-attention or convolution layer",
    "residual": "mixes or gates the residual stream (hyper-connections, AltUp, LAuReL, per-layer inputs)",
    "adapter": "small matrices that the architecture itself puts beside a shared block",
    "norm": "normalisation",
    "embed": "token embeddings",
    "embed.position": "position embeddings, learned or tabulated",
    "embed.extra": "further embeddings that are added to those of the tokens (segments, glyphs, per layer)",
    "embed.project": "projection between the embeddings' size and the hidden size",
    "head.transform": "a layer between the decoder and the output head",
    "head": "output head over the vocabulary",
    "score": "head of one number over the last token, of a model that scores, in place of the output head",
}

ROLE_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "attn": (
        "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.qk", "attn.kv", "attn.q_down", "attn.kv_down", "attn.kv_up",
        "attn.o_down", "attn.o",
    ),
    "cross": ("cross.q", "cross.k", "cross.v", "cross.o"),
    "mlp": ("mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down"),
    "experts": ("mlp.experts.gate_up", "mlp.experts.down", "mlp.experts"),
}  # fmt: skip

ModuleKind = Literal["linear", "conv1d", "embedding", "norm", "parameter", "other"]
AttentionKind = Literal["mha", "gqa", "mqa", "mla", "linear", "none"]


@dataclass(frozen=True, kw_only=True)
class RoleGroup:
    """Modules of one role that share a path pattern and a size.

    `pattern` has `*` for the decoder layer (one of `layers`), and a second `*` for the expert (0 to `experts` - 1) where
    each expert is a module of its own. A pattern without `*` is a single module. For fused experts `experts` is the
    first size of the parameter. `kind` "parameter" is a bare nn.Parameter (fused 3-D experts, some routers); then the
    path names the parameter itself. `shape` is that of the weight as stored; `in_features` and `out_features` follow
    the mathematics, whichever way the weight lies.
    """

    pattern: str
    kind: ModuleKind
    shape: tuple[int, ...]
    in_features: int | None = None
    out_features: int | None = None
    bias: bool = False
    layers: tuple[int, ...] = ()
    experts: int = 0

    @property
    def names(self) -> Iterator[str]:
        """Full module names, in layer order."""
        return (name for _, name in self.places)

    @property
    def places(self) -> Iterator[tuple[int | None, str]]:
        """(decoder layer, full module name) in layer order; the layer is None for a module outside the layers."""
        if "*" not in self.pattern:
            yield None, self.pattern
            return
        for layer in self.layers:
            name = self.pattern.replace("*", str(layer), 1)
            if "*" in name:
                yield from ((layer, name.replace("*", str(expert), 1)) for expert in range(self.experts))
            else:
                yield layer, name

    @property
    def count(self) -> int:
        """How many modules the group stands for."""
        stars = self.pattern.count("*")
        return 1 if stars == 0 else len(self.layers) * (self.experts if stars > 1 else 1)

    @property
    def parameters(self) -> int:
        """Parameters of one module of the group, bias included; 0 for a norm that has no weight."""
        if not self.shape:
            return 0
        fused = self.experts if self.kind == "parameter" and self.experts else 1
        bias = fused * (self.out_features or self.shape[0]) if self.bias else 0
        return math.prod(self.shape) + bias


@dataclass(frozen=True, kw_only=True)
class AttentionGroup:
    """The layers that share one form of attention; sizes in heads and features, windows in tokens.

    `head_dim` is that of queries and keys, `value_dim` that of values (they differ in latent attention). A token of
    chunked attention sees the tokens before it in its chunk of `chunk_size`.
    """

    kind: AttentionKind
    layers: tuple[int, ...]
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    sliding_window: int | None = None
    chunk_size: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Unclassified:
    """A module that detection did not understand; `why` says what was missing."""

    module: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A part of the model beside the text decoder (vision, audio, projector, pooler): named and counted, not classified."""

    module: str
    architecture: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a checkpoint that arrives quantised is stored, and what that allows (core/prequantized.py has the table).

    method        as the checkpoint calls it: "gptq", "bitsandbytes", "mxfp4", ...
    bits          of a stored weight; None where nothing says
    packages      PEP 508 requirements for loading it and training an adapter on it
    cuda          whether that needs a CUDA device
    untrainable   why no adapter can train on it; empty where one can
    dora          whether the weight can be read back, as DoRA needs it
    dequantize    how it becomes plain weights: while it is loaded, after that, or not at all
    dequantizers  PEP 508 requirements for that
    settings      the checkpoint's own `quantization_config`
    """

    method: str
    bits: float | None = None
    packages: tuple[str, ...] = ()
    cuda: bool = False
    untrainable: str = ""
    dora: bool = False
    dequantize: Literal["load", "after", ""] = ""
    dequantizers: tuple[str, ...] = ()
    settings: FrozenDict[str, Any] = field(default_factory=FrozenDict)


@dataclass(frozen=True, kw_only=True)
class ArchitectureProfile:
    """Everything the resolver and the methods may ask about a model; JSON-serialisable and hashable.

    `decoder` is the path of the decoder's layer list, `layers` their number. `parameters` counts each tied matrix once;
    `role_parameters` counts by role and adds up to `parameters`: besides the roles it has "towers", "unclassified", and
    "other" for vectors without a role (gains, attention sinks, expert biases). A matrix that plays two roles (tied
    embeddings) counts for the first. `intermediate_size` is that of the widest MLP, or of the experts where there is no
    other. `context_length` in tokens. `prequantized` names the quantisation method that the checkpoint arrives with, and
    `quantization` says what that means.
    `backends` are the attention implementations that the class itself declares: "eager", "sdpa", "flash_attention",
    "flex_attention".
    """

    model_type: str
    architecture: str
    decoder: str
    layers: int
    layer_classes: tuple[str, ...]
    hidden_size: int
    vocab_size: int
    intermediate_size: int = 0
    context_length: int | None = None
    roles: FrozenDict[str, tuple[RoleGroup, ...]] = field(default_factory=FrozenDict)
    attention: tuple[AttentionGroup, ...] = ()
    parameters: int = 0
    role_parameters: FrozenDict[str, int] = field(default_factory=FrozenDict)
    tied_embeddings: bool = False
    rope: str | None = None
    rope_theta: float | None = None
    final_softcap: float | None = None
    experts: int = 0
    experts_per_token: int = 0
    dtype: str | None = None
    prequantized: str | None = None
    quantization: Quantization | None = None
    remote_code: bool = False
    gradient_checkpointing: bool = True
    backends: tuple[str, ...] = ("eager",)
    traits: frozenset[Trait] = frozenset()
    towers: tuple[Tower, ...] = ()
    unclassified: tuple[Unclassified, ...] = ()

    def groups(self, role: str) -> tuple[RoleGroup, ...]:
        """The groups of a role ("attn.q") or of a role group ("attn"); empty when the model has none."""
        roles = ROLE_GROUPS.get(role, (role,))
        return tuple(group for name in roles for group in self.roles.get(name, ()))

    def modules(self, roles: str | Iterable[str]) -> tuple[str, ...]:
        """Full names of all modules that play these roles, in role order."""
        wanted = (roles,) if isinstance(roles, str) else tuple(roles)
        return tuple(name for role in wanted for group in self.groups(role) for name in group.names)

    def has(self, role: str) -> bool:
        """Whether any module plays this role or one of this role group."""
        return bool(self.groups(role))

    @property
    def has_attention(self) -> bool:
        """Whether at least one layer has softmax attention."""
        return any(group.kind not in ("linear", "none") for group in self.attention)
