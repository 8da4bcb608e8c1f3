"""Which number formats a run uses: asked for, or decided from the dtype probe and from whether base weights train."""

from __future__ import annotations

from luthier.core.environment import Environment
from luthier.core.plan import Precision
from luthier.core.traits import Trait

# A probe repeats to within about a tenth; below that the more exact format is taken.
CLEARLY_FASTER = 1.15


def decide_precision(asked: str, environment: Environment, facts: frozenset[Trait]) -> tuple[Precision, list[str]]:
    """The precision and the warnings that go with it.

    fp32: everything in float32. bf16: weights and products in bfloat16 (adapters stay float32). mixed: float32 weights,
    bfloat16 products under autocast: what training whole weights wants, since a bfloat16 weight swallows updates
    below 1/256 of it (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1).
    """
    frozen = "base.frozen" in facts
    if asked != "auto":
        warnings = []
        slower = bf16_is_slower(environment)
        if asked != "fp32" and slower:
            warnings.append(f"precision {asked} is slower than fp32 on this machine: {slower}")
        if asked == "bf16" and not frozen:
            warnings.append(
                "precision bf16 trains bfloat16 weights: updates below 1/256 of a weight are lost; `mixed` keeps them"
            )
        return _named(asked, "asked for in the configuration"), warnings
    faster, evidence = bf16_pays(environment)
    if not faster:
        return _named("fp32", evidence), []
    if frozen:
        return _named("bf16", f"{evidence}, and the base weights are frozen"), []
    return _named("mixed", f"{evidence}; the base weights train and are kept in float32"), []


def bf16_pays(environment: Environment) -> tuple[bool, str]:
    """Whether bfloat16 products are clearly faster on this machine, and how that is known."""
    single, half = environment.matmul.get("float32"), environment.matmul.get("bfloat16")
    if single and half and single.gflops > 0:
        ratio = half.gflops / single.gflops
        text = f"measured matrix products: bf16 {half.gflops:.0f} GFLOP/s, fp32 {single.gflops:.0f} GFLOP/s"
        if 1 < ratio < CLEARLY_FASTER:
            text += f"; fp32 is more exact, and bf16 would have to be {CLEARLY_FASTER} times as fast"
        return ratio >= CLEARLY_FASTER, text
    if environment.device == "cuda" and environment.capability is not None:
        major, minor = environment.capability
        return (
            major >= 8,
            f"compute capability {major}.{minor} {'has' if major >= 8 else 'lacks'} bf16 tensor cores (no probe was run)",
        )
    return False, "the dtype probe was not run; fp32 is exact everywhere"


def bf16_is_slower(environment: Environment) -> str:
    """The evidence that bfloat16 products are slower here; empty where they are not, or where nothing is known."""
    known = bool(environment.matmul) or environment.capability is not None
    single, half = environment.matmul.get("float32"), environment.matmul.get("bfloat16")
    if single and half and half.gflops >= single.gflops:
        return ""
    faster, evidence = bf16_pays(environment)
    return evidence if known and not faster else ""


def _named(name: str, why: str) -> Precision:
    if name == "fp32":
        return Precision(name="fp32", weights="float32", compute="float32", why=why)
    if name == "bf16":
        return Precision(name="bf16", weights="bfloat16", compute="bfloat16", why=why)
    return Precision(name="mixed", weights="float32", compute="bfloat16", why=why)
