"""The model of a finished run, loaded again with what was trained on it, unmerged: to merge it, or to use it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.calling import call
from luthier.core.catalog import Catalog
from luthier.core.config import parse_config
from luthier.core.config.schema import AUTO
from luthier.core.config.validate import parse_options
from luthier.core.context import BuildContext
from luthier.core.contracts import Adapter, ModelPatch
from luthier.core.data.templates import apply_template, choose_template, stop_at_end_of_turn
from luthier.core.errors import ModelError
from luthier.core.frozen import FrozenDict, thaw
from luthier.core.loading import load_model, load_tokenizer
from luthier.core.output import CHECKPOINT
from luthier.core.plan import Plan, Precision, Step
from luthier.core.saving import ADAPTER_CONFIG, load_trained

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def read_run(folder: Path) -> Plan:
    """The plan of a finished run, or of the run that a checkpoint belongs to. Raises ModelError where there is none."""
    for place in (folder, folder.parent):
        path = place / "plan.json"
        if path.is_file() and (place == folder or CHECKPOINT.fullmatch(folder.name)):
            try:
                return Plan.from_json(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, KeyError) as error:
                raise ModelError(f"the plan of the run cannot be read: {error}", where=str(path)) from error
    raise ModelError("this is no folder of a run: it has no plan.json", where=str(folder), fix="give a run's output folder")


@dataclasses.dataclass(frozen=True)
class RunTokenizer:
    """A run's tokenizer: `edited` with what patches and `data.template` changed, `original` as the model came with it.

    They are one object where no patch changed anything. `warnings` are about the chat template.
    """

    edited: PreTrainedTokenizerBase
    original: PreTrainedTokenizerBase
    warnings: tuple[str, ...] = ()


def new_tokenizer(plan: Plan, catalog: Catalog, notice: Callable[[str], None] = lambda text: None) -> RunTokenizer:
    """The tokenizer that a run of this plan begins with. Raises ModelError, and DataError for `data.template`."""
    tokenizer = original = load_tokenizer(plan.model, notice)
    for step in plan.steps_in("patches"):
        patch, options = method_of(step, catalog)
        if patch.edit_tokenizer is not None:
            if original is tokenizer:
                original = copy.deepcopy(tokenizer)
            call(patch.edit_tokenizer, tokenizer, plan.profile, options, notice=notice)
    choice = parse_config(thaw(plan.config)).data.template
    # A model without a template of its own may learn from plain text; whoever writes conversations with it is refused.
    if choice == AUTO and not tokenizer.chat_template:
        return RunTokenizer(tokenizer, original)
    return RunTokenizer(tokenizer, original, apply_template(tokenizer, choose_template(tokenizer, choice)))


def run_tokenizer(plan: Plan, folder: Path, catalog: Catalog) -> PreTrainedTokenizerBase:
    """The tokenizer that the run or the checkpoint saved; where neither did, the one that the run began with."""
    for place, owner in ((folder, folder), (folder, folder.parent), (folder.parent, folder.parent)):
        if (place / "tokenizer_config.json").is_file() and (owner / "plan.json").is_file():
            return load_tokenizer(dataclasses.replace(plan.model, tokenizer=str(place)))
    return new_tokenizer(plan, catalog).edited


def trained_model(
    plan: Plan,
    folder: Path,
    catalog: Catalog,
    tokenizer: PreTrainedTokenizerBase,
    *,
    without: Collection[Step] = (),
    dequantise: bool = False,
) -> nn.Module:
    """The run's model, unmerged, in float32 on the CPU, in evaluation mode.

    Of the patches, those are applied that belong to the model: `persistent` ones, and those that decide how its weights are
    stored; the ones in `without` are left out. `dequantise` turns quantised base weights into float32 before anything is put
    on them. Raises ModelError where weights are missing, damaged, or of another model.
    """
    from luthier.core.former_models import make_ready

    adapter, _ = method_of(plan.step("adapter"), catalog)
    assert isinstance(adapter, Adapter)
    make_ready(plan.model, catalog)
    plain = on_cpu(plan, catalog, without)
    if adapter.load is None and not (folder / ADAPTER_CONFIG).is_file():
        # What was saved is a plain model, whatever the base was stored in.
        options = FrozenDict({key: value for key, value in plain.load_options.items() if key != "quantization_config"})
        profile = dataclasses.replace(plain.profile, quantization=None, prequantized=None)
        whole = dataclasses.replace(plan.model, path=str(folder), gguf_file=None, revision=None)
        saved = load_model(dataclasses.replace(plain, model=whole, load_options=options, profile=profile))
        _fit_to(tokenizer, saved, plan)
        return saved.eval()
    needed = [
        method_of(step, catalog)
        for step in plan.steps_in("patches")
        if step not in without and belongs_to_the_model(step, plan, catalog)
    ]
    original = load_tokenizer(plan.model) if needed else tokenizer
    context = BuildContext(precision=plain.precision, tokenizer=tokenizer, original_tokenizer=original)
    for patch, options in needed:
        if patch.phase == "load":
            call(patch.apply, None, plan.profile, options, context=context)
    model = load_model(plain)
    _fit_to(tokenizer, model, plan)
    for patch, options in needed:
        if patch.phase == "loaded":
            call(patch.apply, model, plan.profile, options, context=context)
    if dequantise:
        import torch

        from luthier.core.dequantize import dequantize_model

        model = dequantize_model(model, torch.float32)
    return load_trained(model, folder, adapter, trainable=False).eval()


def _fit_to(tokenizer: PreTrainedTokenizerBase, model: nn.Module, plan: Plan) -> None:
    """What a model has to know of its tokenizer: where generation stops, and what pads the rows that are scored."""
    stop_at_end_of_turn(model, tokenizer)
    if plan.task == "score":
        from luthier.core.score_head import pad_with

        pad_with(model, tokenizer)


def method_of(step: Step, catalog: Catalog) -> tuple[Any, Any]:
    """A step's method and its configuration object."""
    method = catalog.method(step.slot, step.method)
    return method, parse_options(method.config, FrozenDict(step.config), where=step.slot)


def provides(step: Step, plan: Plan, catalog: Catalog, trait: str) -> bool:
    """Whether this step's method makes a trait true."""
    method, options = method_of(step, catalog)
    return trait in method.declaration(plan.profile, options).provides


def belongs_to_the_model(step: Step, plan: Plan, catalog: Catalog) -> bool:
    """Whether a patch changes the model itself, and not only how it is computed."""
    patch, options = method_of(step, catalog)
    assert isinstance(patch, ModelPatch)
    return patch.persistent or "weights.storage" in patch.declaration(plan.profile, options).claims


def on_cpu(plan: Plan, catalog: Catalog, without: Collection[Step]) -> Plan:
    """The plan with float32 weights on the CPU, transformers' own attention, no load options of the patches `without`."""
    options = dict(plan.load_options)
    options.pop("attn_implementation", None)
    for step in without:
        method, config = method_of(step, catalog)
        for key in method.load_options(plan.profile, config):
            options.pop(key, None)
    precision = Precision(name="fp32", weights="float32", compute="float32", why="loaded again")
    return dataclasses.replace(plan, device="cpu", precision=precision, load_options=FrozenDict(options))
