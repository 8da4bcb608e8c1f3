"""nf4, fp4 and int8: that adapters train rightly on them, also after an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.quantized import count_parameters

from .conftest import BITS, Loaded


def steps(model: Any, evaluate: bool) -> list[float]:
    """Losses of six LoRA steps; with `evaluate`, a forward in evaluation mode comes after the second."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids = torch.randint(0, 250, (2, 16), generator=torch.Generator().manual_seed(1))
    losses = []
    for step in range(6):
        if evaluate and step == 2:
            with torch.no_grad():
                tuned.eval()(input_ids=ids)
        loss = tuned.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("use", BITS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_after_an_evaluation_is_as_without_it(use: str, precision: str, quantised: Callable[..., Loaded]) -> None:
    without, with_one = (steps(quantised("llama", use, precision).model, evaluate) for evaluate in (False, True))
    assert with_one == without
    assert with_one[-1] < with_one[0]


@pytest.mark.parametrize("use", ["nf4", "fp4"])
def test_repacking_is_off_whatever_the_library_sets(
    use: str, quantised: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any CPU, so that the trap is seen where it cannot spring."""
    from bitsandbytes.nn import Linear4bit

    original = Linear4bit.__init__

    def switched_on(module: Any, *args: Any, **options: Any) -> None:
        original(module, *args, **options)
        module.support_avx512bf16_for_cpu = True

    monkeypatch.setattr(Linear4bit, "__init__", switched_on)
    layers = [module for module in quantised("llama", use).model.modules() if isinstance(module, Linear4bit)]
    assert layers
    assert not any(module.support_avx512bf16_for_cpu for module in layers)


def test_the_trap_that_this_avoids_is_there(quantised: Callable[..., Loaded]) -> None:
    """On a CPU with AVX512-BF16 the same, with bitsandbytes' own setting, goes wrong: the test above can fail."""
    from bitsandbytes.functional import has_avx512bf16

    def as_it_comes() -> Any:
        model = quantised("llama", "nf4").model
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = has_avx512bf16()
        return model

    assert (steps(as_it_comes(), True) != steps(as_it_comes(), False)) == bool(has_avx512bf16())


@pytest.mark.parametrize("use", BITS)
def test_gradients_are_those_of_the_dequantised_model(use: str, quantised: Callable[..., Loaded]) -> None:
    """LoRA on quantised weights against LoRA on plain weights of the same values."""
    from peft import LoraConfig, get_peft_model

    from luthier.core.dequantize import dequantize_model

    ids = torch.randint(0, 250, (2, 16), generator=torch.Generator().manual_seed(1))

    def slopes(model: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        options = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        tuned = get_peft_model(model, options).train()
        tuned(input_ids=ids, labels=ids).loss.backward()
        return {name: parameter.grad for name, parameter in tuned.named_parameters() if parameter.requires_grad}

    found = slopes(quantised("llama", use).model)
    expected = slopes(dequantize_model(quantised("llama", use).model, torch.float32))
    assert found.keys() == expected.keys()
    for name, slope in found.items():
        assert torch.allclose(slope, expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].abs().max())), name


@pytest.mark.parametrize("use", BITS)
def test_taking_the_patch_back_restores_what_it_set(use: str, quantised: Callable[..., Loaded]) -> None:
    loaded = quantised("llama", use)
    loaded.undo()
    plain = [parameter for parameter in loaded.model.parameters() if parameter.dtype == torch.float32]
    assert plain
    assert all(parameter.requires_grad for parameter in plain)


def test_the_two_lines_of_bitsandbytes_are_held_back_and_no_other(
    quantised: Callable[..., Loaded], caplog: pytest.LogCaptureFixture
) -> None:
    """The one at import was held back before this process had bitsandbytes; the other comes at every int8 evaluation."""
    import logging
    import subprocess
    import sys

    module = quantised("llama", "int8").layers["model.layers.0.self_attn.q_proj"].eval()
    module(torch.randn(2, 64))
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]
    logging.getLogger("bitsandbytes.autograd._functions").warning("something else")
    assert [record.message for record in caplog.records if record.name.startswith("bitsandbytes")] == ["something else"]
    code = "import luthier.plugins.lora, peft.tuners.lora.bnb"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm_4bit_forward" not in done.stdout + done.stderr


def test_what_is_held_back_is_what_bitsandbytes_says() -> None:
    """A message that was reworded would be shown again, and its filter would be dead code."""
    import bitsandbytes

    from luthier.plugins import HELD_BACK

    package = Path(bitsandbytes.__file__).parent
    source = "".join(path.read_text() for path in package.rglob("*.py"))
    assert all(line in source for line in HELD_BACK.values())


def test_quantised_parameters_are_counted_as_what_they_stand_for(quantised: Callable[..., Loaded]) -> None:
    for use in BITS:
        loaded = quantised("llama", use)
        assert sum(count_parameters(parameter) for parameter in loaded.model.parameters()) == loaded.profile.parameters
