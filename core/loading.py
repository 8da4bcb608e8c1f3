"""The tokenizer and the model of a plan, loaded as the plan says; every way in which that fails has its message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError, MissingEnvironmentError, ModelError
from luthier.core.frozen import thaw
from luthier.core.meter import ran_out_of_memory
from luthier.core.plan import ModelReference, Plan
from luthier.core.quantized import cast_plain_weights, quantized_options, settle, without_repeated_configuration
from luthier.core.saving import quiet
from luthier.core.scoring import SCORE

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Notice = Callable[[str], None]


def load_tokenizer(model: ModelReference, notice: Notice = lambda text: None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token; `notice` hears of what had to be filled in. Raises ModelError."""
    from transformers import AutoTokenizer

    with _failures(model, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer or model.path, **_tokenizer_options(model))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            reason = "the tokenizer has neither a padding nor an end token"
            raise ModelError(reason, where=model.path, fix="set pad_token in its tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
        notice(f"the tokenizer has no padding token: {tokenizer.eos_token} is used, and never learned where it pads")
    return tokenizer


def load_model(plan: Plan, notice: Notice = lambda text: None) -> nn.Module:
    """The model with the plan's dtype and load options, on the plan's device, in training mode: a causal language model, or
    for task "score" one with a score head in place of the language-model head.

    Raises ModelError where weights are missing, corrupt, or do not fit the configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    options: dict[str, Any] = {**thaw(plan.load_options), **_reference_options(plan.model)}
    options.setdefault("dtype", getattr(torch, plan.precision.weights))
    options = quantized_options(options, plan)
    if plan.model.gguf_file:
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    loader = AutoModelForCausalLM
    if plan.task == "score":
        # A head of another size is refused below, in words of ours.
        loader, options = AutoModelForSequenceClassification, options | {"num_labels": 1, "ignore_mismatched_sizes": True}
    with _failures(plan.model, "model"), without_repeated_configuration():
        model, info = loader.from_pretrained(plan.model.path, output_loading_info=True, **options)
    if plan.task == "score":
        from luthier.core.score_head import install_head

        info = install_head(model, info, seed=plan.config.get("train", {}).get("seed", 0), notice=notice)
    elif f"{SCORE}.weight" in info["unexpected_keys"]:
        raise ModelError(
            "this is a reward model: it has a head that scores in place of its language-model head",
            where=plan.model.path,
            fix="start from the model that the reward model was trained from",
        )
    _check_weights(plan.model, info, notice)
    if "device_map" not in options:
        model.to(plan.device)
    settle(model, plan.precision)
    if plan.profile.quantization is not None:
        cast_plain_weights(model, getattr(torch, plan.precision.weights))
    if plan.task == "score":
        model.score.float()
    return model.train()


def _reference_options(model: ModelReference) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.revision:
        options["revision"] = model.revision
    if model.gguf_file:
        options["gguf_file"] = model.gguf_file
    return options


def _tokenizer_options(model: ModelReference) -> dict[str, Any]:
    if model.tokenizer is not None:
        return {"trust_remote_code": model.trust_remote_code}
    return _reference_options(model)


def _check_weights(model: ModelReference, info: dict[str, Any], notice: Notice) -> None:
    missing, mismatched = sorted(info["missing_keys"]), list(info.get("mismatched_keys") or ())
    if missing:
        raise ModelError(
            f"the weight files lack {len(missing)} tensors that the model needs, first {missing[0]}",
            where=model.path,
            fix="the download or the conversion is incomplete: fetch the model again",
        )
    if mismatched:
        reason = f"{len(mismatched)} tensors have another shape than config.json says, first {mismatched[0]}"
        raise ModelError(reason, where=model.path)
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        first = unexpected[0]
        notice(f"{len(unexpected)} tensors of the weight files are not part of the model and were left out, first {first}")


@contextmanager
def _failures(model: ModelReference, what: str) -> Iterator[None]:
    """Turn the many exceptions of loading into one message that names file and remedy."""
    from safetensors import SafetensorError

    try:
        with quiet():
            yield
    except LuthierError:
        raise
    except SafetensorError as error:
        where = corrupt_file(Path(model.path))
        raise ModelError(
            f"the weight file is corrupt or cut short: {error}", where=where, fix="fetch the model again"
        ) from error
    except ImportError as error:
        raise MissingEnvironmentError(f"loading the {what} needs a package: {error}", where=model.path) from error
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        if ran_out_of_memory(error):
            raise  # no fault of the model; the engine says what ran out
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the {what} cannot be loaded: {first}", where=model.path) from error


def corrupt_file(folder: Path) -> str:
    """The first safetensors file of a folder whose header cannot be read, else the folder."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="np"):
                pass
        except (SafetensorError, OSError):
            return str(path)
    return str(folder)
