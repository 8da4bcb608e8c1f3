"""Writes docs/architectures.md: what detection finds in every causal language model that transformers knows.

    python docs/gen/architectures.py          # writes the page
    python docs/gen/architectures.py --check  # says whether it is up to date

Each model type is built on the meta device from its default configuration with few layers. A default that contradicts
itself (13 head dimensions that do not divide, no number of experts) is patched lightly; what then still cannot be built
is listed with the reason. No network, no weights.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.profile import ArchitectureProfile

PAGE: Final = Path(__file__).resolve().parent.parent / "architectures.md"
LAYERS: Final = 8

PATCHES: Final[tuple[dict[str, Any], ...]] = (
    {"num_hidden_layers": LAYERS},
    {"num_hidden_layers": 2},
    {"num_hidden_layers": 2, "head_dim": 64},
    {},
    {"is_decoder": True},
    {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
    {"num_hidden_layers": 2, "num_key_value_heads": 8, "head_dim": 64},
    {
        "num_hidden_layers": 2,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
)
"""Changes to a default configuration, tried in this order until a model can be built."""


@dataclass(frozen=True)
class Row:
    """One model type: its profile, or why there is no model; `total` is the model's own count of parameters."""

    model_type: str
    profile: ArchitectureProfile | None = None
    total: int = 0
    error: str = ""


def default_model(config_class: Any) -> Any:
    """A model on the meta device from the first patch that works; raises the first error when none does."""
    import torch
    from transformers import AutoModelForCausalLM

    first: Exception | None = None
    for patch in PATCHES:
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config_class(**patch))
        except Exception as error:  # a constructor may raise anything on a configuration that contradicts itself
            first = first or error
    raise first or RuntimeError("no patch was tried")


def survey() -> Iterator[Row]:
    """One row for each model type of transformers' causal-LM mapping, in its order."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging

    from luthier.registry.detect import detect

    logging.set_verbosity_error()
    done: set[str] = set()
    for config_class in MODEL_FOR_CAUSAL_LM_MAPPING:
        if config_class.model_type in done:
            continue
        done.add(config_class.model_type)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = default_model(config_class)
        except Exception as error:
            yield Row(
                config_class.model_type, error=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}".rstrip(": ")
            )
            continue
        yield Row(config_class.model_type, detect(model), sum(tensor.numel() for tensor in model.parameters()))


def is_complete(profile: ArchitectureProfile) -> bool:
    """Whether everything got a role: nothing unclassified, embeddings and head named, and each layer understood."""
    understood = profile.has("mixer") or profile.has("attn")
    return understood and profile.has("embed") and profile.has("head") and not profile.unclassified


def is_hybrid(profile: ArchitectureProfile) -> bool:
    return profile.has_attention and profile.has("mixer")


def attention_words(profile: ArchitectureProfile) -> str:
    """`gqa 32/8x128, window 4096` for each form of attention, most layers first."""
    words = []
    for group in sorted(profile.attention, key=lambda group: -len(group.layers)):
        text = group.kind
        if group.heads:
            text += f" {group.heads}/{group.kv_heads}x{group.head_dim}"
        if group.sliding_window:
            text += f" window {group.sliding_window}"
        if group.chunk_size:
            text += f" chunk {group.chunk_size}"
        words.append(text)
    return ", ".join(dict.fromkeys(words))


def mlp_words(profile: ArchitectureProfile) -> str:
    """The forms of MLP that the model has."""
    forms = {
        "gated": profile.has("mlp.gate"),
        "gated, fused": profile.has("mlp.gate_up"),
        "plain": profile.has("mlp.up") and not profile.has("mlp.gate"),
        "experts, fused": profile.has("mlp.experts.gate_up") or profile.has("mlp.experts.down"),
        "experts": profile.has("mlp.experts") and not profile.has("mlp.experts.down"),
    }
    return "; ".join(form for form, there in forms.items() if there) or "none"


def page(rows: list[Row]) -> str:
    """The whole page as Markdown."""
    built = [row.profile for row in rows if row.profile is not None]
    complete = [profile for profile in built if is_complete(profile)]
    hybrids = [profile for profile in complete if is_hybrid(profile)]
    stateful = [profile for profile in complete if not profile.has_attention]
    import transformers

    lines = [
        "# Architectures",
        "",
        "<!-- generated by docs/gen/architectures.py; do not edit -->",
        "",
        "`luthier profile MODEL` reads the architecture of a model from its configuration alone: the model is built on the",
        "meta device, no weight is read. This page is what detection finds in every model type that `AutoModelForCausalLM`",
        "of transformers knows, each from its default configuration with few layers (so the sizes are those of the",
        "defaults, not of a released checkpoint).",
        "",
        f"With transformers {transformers.__version__}: of {len(rows)} model types {len(built)} can be built;",
        f"**{len(complete)} are classified completely**, {len(hybrids)} of them hybrids of attention and another mixer,",
        f"{len(stateful)} without softmax attention. Attention is given as *kind, heads / key-value heads x*",
        "*head size*. A profile names every module of each role with its sizes; the roles are those of `core/profile.py`.",
        "",
        "| model type | class | attention | MLP | roles | not understood |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: row.model_type):
        if row.profile is None:
            continue
        profile = row.profile
        left = "<br>".join(f"`{item.module}`: {item.why}" for item in profile.unclassified)
        roles = ", ".join(profile.roles)
        cells = (f"`{row.model_type}`", profile.architecture, attention_words(profile), mlp_words(profile), roles, left)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## Not built",
        "",
        "These cannot be built from a default configuration, so nothing is said about them.",
        "",
    ]
    lines += ["| model type | why |", "| --- | --- |"]
    lines += [
        f"| `{row.model_type}` | {row.error} |"
        for row in sorted(rows, key=lambda row: row.model_type)
        if row.profile is None
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    text = page(list(survey()))
    if "--check" in arguments:
        current = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        print("up to date" if text == current else "out of date: run python docs/gen/architectures.py")
        return int(text != current)
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
