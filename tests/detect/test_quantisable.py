"""What the profile says would be quantised is what transformers converts, over its whole causal-LM mapping."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import pytest

from luthier.plugins._bitsandbytes.storage import UNCONVERTED, load_options, storage_of
from luthier.registry.detect import detect


def built(generator: ModuleType, config_class: Any) -> Any:
    """None where transformers cannot build it from defaults: tests/detect/test_mapping.py counts these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return generator.default_model(config_class)
        except Exception:
            return None


def test_transformers_converts_exactly_what_is_planned(generator: ModuleType) -> None:
    """With transformers' own conversion, given the names that a run would give it, on the meta device."""
    pytest.importorskip("bitsandbytes")
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.auto import AutoQuantizationConfig

    done: set[str] = set()
    wrong, kept = [], set()
    for config_class in MODEL_FOR_CAUSAL_LM_MAPPING:
        if config_class.model_type in done:
            continue
        done.add(config_class.model_type)
        model = built(generator, config_class)
        if model is None:
            continue
        profile = detect(model)
        asked: Any = load_options(profile, (), load_in_4bit=True)["quantization_config"]
        settings = AutoQuantizationConfig.from_dict(dict(asked))
        linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        replace_with_bnb_linear(model, settings.llm_int8_skip_modules, settings)
        found = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
        planned = {target.name for target in storage_of(profile, ()).quantised}
        if found != planned:
            wrong.append((config_class.model_type, sorted(planned ^ found)[:3]))
        if linear and not planned:
            kept.add(config_class.model_type)
    assert not wrong
    assert len(done) > 150
    assert "falcon" in kept


def test_the_exceptions_are_needed() -> None:
    """Each names a class of linear layer that transformers does not convert."""
    from torch import nn
    from transformers.models.deepseek_v4 import modeling_deepseek_v4
    from transformers.models.falcon import modeling_falcon

    own = {"falcon": modeling_falcon.FalconLinear, "deepseek_v4": modeling_deepseek_v4.DeepseekV4GroupedLinear}
    assert own.keys() == UNCONVERTED.keys()
    assert all(issubclass(kind, nn.Linear) and kind is not nn.Linear for kind in own.values())
