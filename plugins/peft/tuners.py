"""Which of PEFT's tuners work here, and what each can do: found by trying all of PEFT 0.21.2 (tests/methods/test_peft.py).

Standard library only: the plan asks before PEFT is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from luthier.core.contracts import Declaration
from luthier.core.frozen import FrozenDict
from luthier.core.scoring import SCORE_HEAD

Kind = Literal["weights", "norms", "prompt"]
Quantised = Literal["any", "8bit", "none"]
Start = Literal["base", "if_asked", "elsewhere"]

ANY: Final = "any value"
INITS: Final = ("init_weights", "init_ia3_weights")
FOUR_BIT, ANY_BIT, PUBLISHED = "weights.quantized.4bit", "weights.quantized", "model.prequantized"


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """What one tuner does.

    kind        adapts projections ("weights"), norms, or puts learned tokens before every row ("prompt")
    starts      the model as it was ("base", but for other values of `init_weights`), so only with `init_weights: true`
                ("if_asked"), or always another ("elsewhere")
    conv1d      whether it has a layer for transformers' Conv1D
    mergeable   whether what it learned can be folded into the weights
    quantised   which quantised weights its layers compute with
    target      what it adapts where nothing is said
    counted     whether PEFT can say its size on the meta device; else `planning` has a formula
    refused     options whose values, some or ANY, do not work here, with the reason
    paper       arXiv number
    """

    kind: Kind = "weights"
    starts: Start = "base"
    conv1d: bool = False
    mergeable: bool = True
    quantised: Quantised = "none"
    target: tuple[str, ...] = ("all",)
    counted: bool = True
    refused: Mapping[str, Mapping[object, str]] = field(default_factory=dict)
    paper: str = ""


NO_RESUME: Final = "then PEFT saves too little of it to go on with: a run could not be resumed"

TUNERS: Final[Mapping[str, Tuner]] = {
    "beft": Tuner(mergeable=False, quantised="any", paper="2509.15974"),
    "c3a": Tuner(starts="if_asked", quantised="any", paper="2407.19342"),
    "deft": Tuner(conv1d=True),
    "delora": Tuner(paper="2503.18225"),
    "fourierft": Tuner(starts="if_asked", conv1d=True, quantised="any", paper="2405.03003"),
    "glora": Tuner(),
    "gralora": Tuner(conv1d=True, quantised="any"),
    "hira": Tuner(conv1d=True, quantised="any"),
    "hra": Tuner(paper="2405.17484"),
    "ia3": Tuner(
        conv1d=True, quantised="any", target=("attn.k", "attn.v", "attn.kv", "attn.qkv", "mlp.down"), paper="2205.05638"
    ),
    "lily": Tuner(mergeable=False, quantised="any", paper="2407.09946"),
    "ln_tuning": Tuner(kind="norms", conv1d=True, quantised="any", target=("norm",), paper="2312.11420"),
    "loha": Tuner(quantised="8bit", paper="2108.06098"),
    "lokr": Tuner(quantised="8bit", paper="2309.14859"),
    "miss": Tuner(quantised="any", paper="2409.15371"),
    "osf": Tuner(),
    "peanut": Tuner(paper="2410.01870"),
    "prefix_tuning": Tuner(
        kind="prompt",
        starts="elsewhere",
        conv1d=True,
        mergeable=False,
        quantised="any",
        counted=False,
        refused={"prefix_projection": {True: NO_RESUME}},
        paper="2101.00190",
    ),
    "prompt_tuning": Tuner(
        kind="prompt",
        starts="elsewhere",
        conv1d=True,
        mergeable=False,
        quantised="any",
        counted=False,
        paper="2104.08691",
    ),
    "psoft": Tuner(),
    "pvera": Tuner(
        conv1d=True,
        quantised="any",
        refused={"generator_seed": {ANY: "it draws from a generator of its own, which a resumed run could not continue"}},
        paper="2512.07703",
    ),
    "randlora": Tuner(conv1d=True, quantised="any", paper="2502.00987"),
    "road": Tuner(quantised="any", paper="2409.00119"),
    "shira": Tuner(counted=False),
    "supertuning": Tuner(paper="2607.09287"),
    "tinylora": Tuner(conv1d=True, paper="2602.04118"),
    "unilora": Tuner(starts="elsewhere", conv1d=True, counted=False, paper="2506.00799"),
    "vblora": Tuner(
        starts="elsewhere",
        conv1d=True,
        quantised="any",
        refused={"save_only_topk_weights": {True: NO_RESUME}},
        paper="2405.15179",
    ),
    "vera": Tuner(conv1d=True, quantised="any", paper="2310.11454"),
    "waveft": Tuner(conv1d=True, quantised="any"),
}

NEEDS_TASKS: Final = "it wants the number of a task with every row, and rows here have none"
OWN: Final = "it has an adapter of its own here"

# Of PEFT's other tuners: the reason, and what to take in its place.
REFUSED: Final[Mapping[str, tuple[str, str]]] = {
    "adalora": ("its ranks have to be allotted anew in every training step, which an adapter has no part in", "take `lora`"),
    "adamss": ("it needs scikit-learn, and a callback in every training step", "take `lora`"),
    "adaption_prompt": (
        "PEFT's layer for it does not compute with float32 prompts on a bfloat16 model",
        "take `prefix_tuning`",
    ),
    "boft": (
        "PEFT keeps two dense permutations of inputs x inputs for every module, more than the model itself",
        "take `oft`",
    ),
    "bone": ("PEFT has renamed it", "write `miss`"),
    "cartridge": ("its tokens have to be distilled from a text before", "take `prefix_tuning`"),
    "cpt": ("it wants the type of every token with every row, and rows here have none", "take `prompt_tuning`"),
    "frod": ("it keeps a second copy of every weight, decomposed together on the CPU in float64", "take `vera`"),
    "lora": (OWN, "write `adapter: lora`"),
    "multitask_prompt_tuning": (NEEDS_TASKS, "take `prompt_tuning`"),
    "oft": (OWN, "write `adapter: oft`"),
    "p_tuning": (
        "PEFT saves what its encoder puts out and not the encoder: a run could not be resumed",
        "take `prompt_tuning`",
    ),
    "poly": (NEEDS_TASKS, "take `lora`"),
    "shadow": ("its layers do not run inside the attention and MLP of transformers' models", "take `lora`"),
    "trainable_tokens": ("it adapts embeddings, which are no projections", "see `luthier explain lora` for new tokens"),
    "xlora": ("it mixes adapters that were trained before", "take `lora`"),
}


def unknown(name: str) -> str:
    """What is wrong with the name of a tuner; empty where it is known, be it only as one that is refused."""
    known = (*TUNERS, *REFUSED)
    if name in known:
        return ""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    fix = f"did you mean `{near[0]}`?" if near else f"known are: {', '.join(TUNERS)}"
    return f"tuner: PEFT's {name!r} is not known here; {fix}"


def declaration(name: str, options: Mapping[str, object], stored: str | None) -> Declaration:
    """The traits that depend on the tuner and on how it starts; `stored` names how the checkpoint arrives quantised."""
    tuner = TUNERS.get(name)
    if tuner is None:
        return Declaration()
    provides = {"adapter.mergeable"} if tuner.mergeable else set()
    asked = [options[key] for key in INITS if key in options]
    if tuner.starts != "elsewhere" and (asked == [True] or (not asked and tuner.starts == "base")):
        provides.add("reference.by_disabling")
    if tuner.kind != "prompt":
        provides.add("adapter.copies")
    reasons: dict[str, str] = {}
    if tuner.quantised == "none":
        reasons[ANY_BIT] = f"PEFT's {name} computes with the weights themselves"
        reasons[PUBLISHED] = reasons[ANY_BIT]
    elif tuner.kind == "weights" and stored not in (None, "bitsandbytes"):
        reasons[PUBLISHED] = f"of quantised layers PEFT's {name} was tried on bitsandbytes' only, and these are {stored}"
    if tuner.quantised == "8bit":
        reasons[FOUR_BIT] = f"PEFT's {name} reads the packed 4-bit weights as if they had the shape of the module"
    if name == "prefix_tuning":
        reasons["activations.recomputed"] = "a layer that is computed again no longer sees the learned keys and values"
    if tuner.kind == "prompt":
        reasons["batches.packed"] = f"{name} puts its tokens before a row, and a packed row holds several texts"
        reasons[SCORE_HEAD] = f"beside the tokens of {name} PEFT neither trains nor saves a head"
    return Declaration(provides=frozenset(provides), conflicts=frozenset(reasons), reasons=FrozenDict(reasons))
