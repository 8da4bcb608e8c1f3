"""Folding what a run trained into plain weights, and proving on sample text that nothing changed.

base model, unquantised      where the run trained on quantised weights: the original ones, or these dequantised
+ what was trained           unmerged: logits U
  folded in                  merged, in float32
  in the format to be kept, written, and read back by transformers alone: logits M

M must equal U to the tolerance, else nothing is left on the disk. Folding into quantised weights would round a small update
away (facts: a loss of 0.39 became 1.45), so these are always replaced first.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from luthier.core import atomic
from luthier.core.catalog import Catalog
from luthier.core.contracts import Adapter, Task
from luthier.core.dequantize import is_quantized_linear
from luthier.core.errors import ConfigError, LuthierError, OutputError
from luthier.core.plan import Plan, Step
from luthier.core.saving import quiet
from luthier.core.trained import method_of, provides, read_run, run_tokenizer, trained_model

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

Base = Literal["original", "dequantized"]
SAMPLE_TOKENS: Final = 256
CUTS: Final = 16
# Parts of the greatest logit. A float32 sum in another order stays below the first; the others round to 8 and 11 bits.
TOLERANCES: Final = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}
SAMPLE: Final = (
    "The capital of France is Paris, and the Seine runs through it. If a train leaves at 9:40 and takes 75 minutes, it "
    "arrives at 10:55.\nWas man nicht im Kopf hat, das hat man in den Beinen. 人工智能正在改变我们的生活。\n"
    'def area(radius: float) -> float:\n    return 3.14159 * radius**2\n\n{"intent": "set_timer", "duration": 36}'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What was folded and how far the result is from the model that was trained; differences are of logits.

    difference        greatest absolute difference between the merged model, as transformers reads it from the disk, and the
                      unmerged one
    relative          the same as a part of the greatest logit: what `tolerance` is compared with
    folding           of this, what folding alone made, in float32; the rest is rounding to `dtype`
    from_quantized    where the run trained on quantised weights: greatest difference between the merged model and that one
    """

    run: str
    into: str
    model: str
    adapter: str
    base: Base
    dtype: str
    parameters: int
    tokens: int
    difference: float
    relative: float
    folding: float
    tolerance: float
    from_quantized: float | None
    plan_hash: str


def merge_run(
    folder: Path,
    into: Path,
    catalog: Catalog,
    *,
    base: Base | None = None,
    dtype: str | None = None,
    tolerance: float | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> MergeReport:
    """Fold the run in `folder` into plain weights in the new folder `into`, on the CPU.

    `dtype` defaults to that of the run's base weights. Raises ConfigError where the method cannot be folded or a choice is
    missing, OutputError where `into` holds something, and LuthierError, leaving nothing, where the logits differ by more
    than `tolerance` (a part of the greatest logit).
    """
    plan = read_run(folder)
    adapter, _ = method_of(plan.step("adapter"), catalog)
    assert isinstance(adapter, Adapter)
    quantised = [step for step in plan.steps_in("patches") if provides(step, plan, catalog, "weights.quantized")]
    chosen = _choose_base(plan, quantised, base)
    _check_adapter(adapter, plan)
    if quantised and chosen == "original":
        _check_original(adapter, plan, catalog)
    _check_target(into)
    kept = dtype or plan.precision.weights
    if kept not in TOLERANCES:
        raise ConfigError(f"{kept!r} is no format of weights", where="--dtype", fix=f"give one of: {', '.join(TOLERANCES)}")
    allowed = tolerance if tolerance is not None else TOLERANCES[kept]

    tokenizer = run_tokenizer(plan, folder, catalog)
    ids = tokenizer(SAMPLE, return_tensors="pt")["input_ids"]
    ids = ids[:, : min(SAMPLE_TOKENS, plan.profile.context_length or SAMPLE_TOKENS)]
    from_quantized = None
    if "weights.quantized" in plan.traits:
        notice("measuring the model as it was trained, on its quantised weights")
        trained_logits = _logits(trained_model(plan, folder, catalog, tokenizer), ids, plan.task)
    notice(f"loading {plan.model.name}, {chosen} weights")
    skipped = tuple(quantised) if chosen == "original" else ()
    model = trained_model(plan, folder, catalog, tokenizer, without=skipped, dequantise=chosen == "dequantized")
    unmerged = _logits(model, ids, plan.task)
    notice(f"folding {adapter.name} into the weights")
    assert adapter.merge is not None
    merged: Any = adapter.merge(model)
    _require_plain(merged, adapter)
    folding = _difference(_logits(merged, ids, plan.task), unmerged)
    with _new_folder(into) as temporary:
        _write(merged, tokenizer, temporary, kept)
        del model, merged
        written, parameters = _read_back(temporary, ids, plan)
        difference, greatest = _difference(written, unmerged), float(unmerged.abs().max())
        if "weights.quantized" in plan.traits:
            from_quantized = _difference(written, trained_logits)
        report = MergeReport(
            run=str(folder),
            into=str(into),
            model=plan.model.name,
            adapter=adapter.name,
            base=chosen,
            dtype=kept,
            parameters=parameters,
            tokens=int(ids.numel()),
            difference=difference,
            relative=difference / max(greatest, sys.float_info.min),
            folding=folding,
            tolerance=allowed,
            from_quantized=from_quantized,
            plan_hash=plan.hash,
        )
        if not report.relative <= allowed:  # a difference that is no number is refused too
            raise LuthierError(
                f"the merged model's logits differ from the trained one's by {difference:.3g}, {report.relative:.2%} of the "
                f"greatest, where {allowed:.2%} is allowed (folding alone: {folding:.3g}); nothing was written",
                where=str(into),
                fix="keep more digits with --dtype float32" if kept != "float32" else "raise --tolerance if you accept it",
            )
        (temporary / "merge.json").write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(_card(plan, report), encoding="utf-8")
    return report


# ---- what may be merged, and onto what


def _check_adapter(adapter: Adapter[Any], plan: Plan) -> None:
    detachable = "adapter.detachable" in plan.traits
    if adapter.merge is None or (detachable and "adapter.mergeable" not in plan.traits):
        raise ConfigError(
            f"what {adapter.name} trained cannot be folded into the weights with these options",
            where="adapter",
            fix="use the run's folder as it is: PEFT loads it beside the base model",
        )


def _choose_base(plan: Plan, quantised: Sequence[Step], base: Base | None) -> Base:
    """Which weights the update is folded into; never decided silently where the run trained on quantised ones."""
    if base not in (None, *get_args(Base)):
        raise ConfigError(f"{base!r} is no choice", where="--base", fix=f"give one of: {', '.join(get_args(Base))}")
    if "weights.quantized" not in plan.traits:
        if base == "dequantized":
            raise ConfigError("the run trained on unquantised weights: there is nothing to dequantise", where="--base")
        return "original"
    if quantised:
        if base is None:
            raise _must_choose(f"the run trained on weights quantised by {quantised[0].method}", get_args(Base))
        return base
    published = f"the model is published quantised ({plan.profile.prequantized})"
    if base == "original":
        raise ConfigError(f"{published}; it has no original weights", where="--base", fix="give --base dequantized")
    if base is None:
        raise _must_choose(published, ("dequantized",))
    return base


def _must_choose(reason: str, ways: tuple[Base, ...]) -> ConfigError:
    meaning = {
        "original": "--base original for the unquantised weights of the model (sharper, but not what was trained on)",
        "dequantized": "--base dequantized for the quantised values themselves (what was trained on)",
    }
    return ConfigError(
        f"{reason}, and a small update would be rounded away in these",
        where="--base",
        fix="choose " + ", or ".join(meaning[way] for way in ways),
    )


def _check_original(adapter: Adapter[Any], plan: Plan, catalog: Catalog) -> None:
    """An adapter that needs quantised weights was trained to put right what they lost."""
    _, options = method_of(plan.step("adapter"), catalog)
    if any("weights.quantized" in need.traits for need in adapter.declaration(plan.profile, options).requires):
        raise ConfigError(
            f"the update of {adapter.name} makes up for the quantisation of the weights: on the original it is too much",
            where="--base",
            fix="give --base dequantized",
        )


def _check_target(into: Path) -> None:
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise OutputError(
            "the folder for the merged model exists and is not empty", where=str(into), fix="give another --into"
        )


# ---- what is compared


def _logits(model: nn.Module, ids: Tensor, task: Task) -> Tensor:
    """Float32 logits of every token; of a model with a score head, the scores of the text cut at `CUTS` places."""
    import torch

    cuts = (ids.shape[1],) if task == "causal" else tuple(max(1, ids.shape[1] * cut // CUTS) for cut in range(1, CUTS + 1))
    with torch.no_grad():
        return torch.cat([model(input_ids=ids[:, :cut], use_cache=False).logits.float() for cut in cuts])


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _require_plain(model: Any, adapter: Adapter[Any]) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        kind = type(model).__name__
        raise LuthierError(
            f"{adapter.name}: merging gave a {kind}, not a transformers model; this is a defect of the adapter"
        )
    left = [name for name, module in model.named_modules() if type(module).__module__.partition(".")[0] == "peft"]
    if left:
        raise LuthierError(f"{adapter.name}: {len(left)} modules were not folded, first {left[0]}; this is a defect")
    packed = [name for name, module in model.named_modules() if is_quantized_linear(module)]
    if packed or getattr(model.config, "quantization_config", None):
        raise LuthierError(f"{adapter.name}: the merged model is still quantised ({len(packed)} modules); this is a defect")


# ---- the folder


@contextmanager
def _new_folder(into: Path) -> Iterator[Path]:
    """`atomic.new_folder`, with its errors in our words."""
    try:
        with atomic.new_folder(into) as temporary:
            yield temporary
    except OSError as error:
        if atomic.is_disk_full(error):
            raise OutputError("the disk is full", where=str(into), fix="make room, or give another --into") from error
        raise OutputError(f"the folder cannot be written: {error.strerror or error}", where=str(into)) from error


def _write(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str) -> None:
    import torch

    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    model.config.use_cache = True  # training switches it off
    with quiet():
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def _read_back(folder: Path, ids: Tensor, plan: Plan) -> tuple[Tensor, int]:
    """The logits of what was written, as plain transformers loads it; and its number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    loader = AutoModelForCausalLM if plan.task == "causal" else AutoModelForSequenceClassification
    with quiet():
        trusted = plan.model.trust_remote_code
        model = loader.from_pretrained(str(folder), dtype=torch.float32, trust_remote_code=trusted).eval()
    return _logits(model, ids, plan.task), sum(parameter.numel() for parameter in model.parameters())


def _card(plan: Plan, report: MergeReport) -> str:
    auto = "AutoModelForCausalLM" if plan.task == "causal" else "AutoModelForSequenceClassification"
    kind = "text-generation" if plan.task == "causal" else "text-classification"
    lines = [
        f"---\nlibrary_name: transformers\npipeline_tag: {kind}\ntags: [luthier, merged]\n---",
        f"# {plan.model.name.rstrip('/').rsplit('/', 1)[-1]}, trained and merged with Luthier",
        f"What `{report.adapter}` trained is folded into the {report.base} weights of `{plan.model.name}`, kept in "
        f"{report.dtype}. On {report.tokens} tokens of sample text the logits differ from the unmerged model's by at most "
        f"{report.difference:.3g} ({report.relative:.3%} of the greatest).",
        f"```python\nfrom transformers import {auto}, AutoTokenizer\n"
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n'
        f'model = {auto}.from_pretrained("path/to/this/folder")\n```',
        "`merge.json` has the numbers.",
    ]
    return "\n\n".join(lines) + "\n"
