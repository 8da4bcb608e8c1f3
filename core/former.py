"""A former run as the model of a new one: `model: runs/sft`.

    whole    the former run left a whole model        that model
    merge    it left an adapter                       the adapter folded into plain weights, kept in the cache
    stack    it left an adapter                       its own base, the adapter frozen below the one that trains

Here is what a plan needs to know, read without loading a weight: where the model lies or will lie, what it is made from, and
why in this way. A merged model's folder is named by what it is made from, so its path is known beforehand, and
core/former_models.py makes it where it is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from luthier.core.caching import cache_folder
from luthier.core.catalog import Catalog
from luthier.core.config.schema import AUTO, ModelConfig
from luthier.core.contracts import Adapter
from luthier.core.errors import ConfigError, ModelError
from luthier.core.frozen import canonical_json, thaw
from luthier.core.output import CHECKPOINT, CHECKPOINT_STATE
from luthier.core.plan import FormerRun, ModelReference, Plan
from luthier.core.prequantized import without_quantization
from luthier.core.profile import ArchitectureProfile
from luthier.core.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHANGED_BASE, MODEL_INDEX, MODEL_WEIGHTS
from luthier.core.trained import belongs_to_the_model, method_of, read_run

How = Literal["whole", "merge", "stack"]
Detect = Callable[[str], ArchitectureProfile]
PLAN: Final = "plan.json"
FINISHED: Final = "all_results.json"
TOKENIZER: Final = ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
BLOCK: Final = 1 << 20


def run_folder(name: str) -> Path | None:
    """The folder that `name` means, where that is a run's output or one of its checkpoints; else None."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    folder = folder.resolve()
    checkpoint = CHECKPOINT.fullmatch(folder.name) and (folder.parent / PLAN).is_file()
    return folder if checkpoint or (folder / PLAN).is_file() else None


def read_former(
    folder: Path, model: ModelConfig, catalog: Catalog, detect: Detect
) -> tuple[ModelReference, ArchitectureProfile]:
    """The reference and the profile of the model that the run in `folder` trained; `detect` reads that of a model folder.

    Raises ModelError where the run is not finished, or its weights or its base are missing; ConfigError where it cannot be
    used in the way that `model` asks for.
    """
    plan = read_run(folder)
    _require_finished(folder)
    whole = is_whole(plan, folder)
    _require_weights(folder, whole)
    _require_sense(plan, model)
    how, why = _way(plan, folder, model, catalog, whole=whole)
    former = FormerRun(
        folder=str(folder),
        how=how,
        why=why,
        content=content_of(folder, plan),
        base=plan.model,
        stage=plan.step("stage").method,
        adapter=plan.step("adapter").method,
        task=plan.task,
        patches=tuple(step for step in plan.steps_in("patches") if belongs_to_the_model(step, plan, catalog)),
        quantized="weights.quantized" in plan.traits,
    )
    made = ModelReference(
        name=str(folder),
        path=str(folder),
        kind="run",
        trust_remote_code=model.trust_remote_code,
        tokenizer=_tokenizer_folder(folder),
        former=former,
    )
    if how == "whole":
        return made, detect(made.path)
    if how == "stack":
        base = plan.model
        _require_base(base, folder)
        placed = dataclasses.replace(made, path=base.path, revision=base.revision, gguf_file=base.gguf_file)
        return placed, plan.profile
    merged = merged_place(former, plan)
    if not merged.is_dir():
        _require_base(plan.model, folder)
    changed = folder / CHANGED_BASE
    profile = detect(str(changed)) if changed.is_dir() else plan.profile
    return dataclasses.replace(made, path=str(merged)), without_quantization(profile, plan.precision.weights)


def is_whole(plan: Plan, folder: Path) -> bool:
    """Whether the run left a whole model, not an adapter beside one."""
    return "adapter.detachable" not in plan.traits and not (folder / ADAPTER_CONFIG).is_file()


def merged_place(former: FormerRun, plan: Plan) -> Path:
    """Where a former run's adapter lies when it is folded into its base: a folder of the cache, named by both."""
    parts = [former.content, former.base.weights, plan.precision.weights]
    return cache_folder() / "merged" / hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:24]


def content_of(folder: Path, plan: Plan) -> str:
    """A hash over what a run trained: its plan, its adapter and tokenizer.

    For a run that left no adapter as PEFT lays it out, over its report and the names and sizes of its weight files: whole
    models are too big to be read for every plan, and no two trainings have one report.
    """
    digest = hashlib.sha256(plan.hash.encode())
    names = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    if not (folder / ADAPTER_WEIGHTS).is_file():
        names = [FINISHED, CHECKPOINT_STATE]
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(f"{path.name}={path.stat().st_size};".encode())
    for name in (*names, *TOKENIZER):
        path = folder / name
        if path.is_file():
            digest.update(name.encode())
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
    return digest.hexdigest()[:32]


def assert_unchanged(model: ModelReference) -> None:
    """Raises ModelError where the former run has been trained anew since the plan was made."""
    former = model.former
    if former is None:
        return
    folder = Path(former.folder)
    if run_folder(former.folder) is None or content_of(folder, read_run(folder)) != former.content:
        raise ModelError(
            "the run that this one starts from is not as it was planned any more: it was trained anew, moved or removed",
            where=former.folder,
            fix="plan again, so that it starts from what is there now",
        )


# ---- two runs on one base


def same_base(one: Plan, other: Plan, catalog: Catalog) -> bool:
    """Whether the adapters of two runs sit on the same weights, stored in the same way: one base can carry both."""
    return not why_not_same_base(one, other, catalog)


def why_not_same_base(one: Plan, other: Plan, catalog: Catalog) -> str:
    """In words, for after "because"; empty where they do. Of a stack the base is that below all adapters."""
    for plan in (one, other):
        if "adapter.detachable" not in plan.traits:
            stage, adapter = plan.step("stage").method, plan.step("adapter").method
            return f"the {stage} run with adapter: {adapter} trains the weights of its model themselves"
    models = [plan.model.foot for plan in (one, other)]
    if models[0].weights != models[1].weights:
        return f"one sits on {_words(models[0])}, the other on {_words(models[1])}"
    stores = [
        [
            f"{step.method} {thaw(step.config)}"
            for step in plan.steps_in("patches")
            if belongs_to_the_model(step, plan, catalog)
        ]
        for plan in (one, other)
    ]
    if stores[0] != stores[1]:
        words = [", ".join(store) or "no such patch" for store in stores]
        return f"the base of one is changed by {words[0]}, that of the other by {words[1]}"
    return ""


def _words(model: ModelReference) -> str:
    what = {"whole": " (trained whole)", "merge": " (merged)"}.get(model.former.how, "") if model.former else ""
    at = f" of revision {model.revision}" if model.revision else ""
    return f"{model.name}{at}{what}"


# ---- what may be used, and how


def _require_finished(folder: Path) -> None:
    checkpoint = CHECKPOINT.fullmatch(folder.name) and not (folder / PLAN).is_file()
    if (folder / (CHECKPOINT_STATE if checkpoint else FINISHED)).is_file():
        return
    if checkpoint:
        raise ModelError("the checkpoint is not complete", where=str(folder), fix="take another checkpoint of the run")
    saved = sorted(entry.name for entry in folder.glob("checkpoint-*") if (entry / CHECKPOINT_STATE).is_file())
    beside = f", or start from its checkpoint: {folder / saved[-1]}" if saved else ""
    raise ModelError("the run is not finished", where=str(folder), fix=f"let it end (`--resume` continues it){beside}")


def _require_weights(folder: Path, whole: bool) -> None:
    wanted = (MODEL_WEIGHTS, MODEL_INDEX) if whole else (ADAPTER_WEIGHTS,)
    if any((folder / name).is_file() for name in wanted) or (not whole and any(folder.glob("*.safetensors"))):
        return
    raise ModelError(f"the run's weights are missing: there is no {wanted[0]}", where=str(folder), fix="train it again")


def _require_sense(plan: Plan, model: ModelConfig) -> None:
    if model.revision is not None:
        raise ConfigError("a run has no revisions", where="model.revision", fix="leave it out")
    if plan.model.trust_remote_code and not model.trust_remote_code:
        raise ConfigError(
            f"the model of the run, {plan.model.name}, comes with Python code of its own",
            where="model.trust_remote_code",
            fix="set it to true if you trust that code",
        )


def _require_base(base: ModelReference, folder: Path) -> None:
    """That the model which the run trained is still where it was; a merged one can be made again, a hub keeps its own."""
    base = base.foot
    if base.kind == "hub" or (base.former is not None and base.former.how == "merge"):
        return
    place = Path(base.path) / (base.gguf_file or "config.json")
    if not place.is_file():
        fetch = f"fetch it again: `luthier profile {base.name}`" if base.kind == "alias" else "put it back"
        raise ModelError(
            f"the model that the run was trained on, {base.name}, is not there any more: there is no {place}",
            where=str(folder),
            fix=f"{fetch}, or train the run again",
        )


def _way(plan: Plan, folder: Path, model: ModelConfig, catalog: Catalog, *, whole: bool) -> tuple[How, str]:
    """How what the run trained is used, and why."""
    name = plan.step("adapter").method
    wish = model.adapters
    if whole:
        if wish != AUTO:
            raise ConfigError(
                f"the run {folder} left a whole model ({name}): there is no adapter to {wish}",
                where="model.adapters",
                fix="leave it out",
            )
        return "whole", f"{name} left whole weights"
    adapter, _ = method_of(plan.step("adapter"), catalog)
    assert isinstance(adapter, Adapter)
    foldable = adapter.merge is not None and "adapter.mergeable" in plan.traits
    quantised = "weights.quantized" in plan.traits
    if wish == "merge" and not foldable:
        raise ConfigError(
            f"what {name} trained in the run {folder} cannot be folded into the weights with its options",
            where="model.adapters",
            fix="train that run with another adapter, for example lora, or start from what it started from",
        )
    if wish == "merge":
        return "merge", "as asked for" + (", into the quantised weights read back as plain ones" if quantised else "")
    if wish == "stack":
        return "stack", "as asked for"
    if not foldable:
        return "stack", f"auto: what {name} trained cannot be folded into the weights"
    if quantised:
        return "stack", f"auto: {name} trained on quantised weights, and stays on them; `merge` would make them plain ones"
    width = plan.precision.weights
    rounded = "" if width == "float32" else f", rounded to {width}"
    return "merge", f"auto: what {name} trained can be folded into the weights{rounded}"


def _tokenizer_folder(folder: Path) -> str:
    """Where the run's tokenizer is: with the template and the tokens that its model has learned."""
    if not (folder / TOKENIZER[0]).is_file():
        raise ModelError(
            f"the run's tokenizer is missing: there is no {TOKENIZER[0]}", where=str(folder), fix="train it again"
        )
    return str(folder)
