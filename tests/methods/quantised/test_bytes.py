"""nf4, fp4 and int8: the bytes that the plan predicts are the bytes that are held."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.memory import forecast

from .conftest import Loaded


def held(model: Any) -> int:
    """Bytes of everything that the model holds: parameters, and what bitsandbytes keeps with them."""
    storages: dict[int, int] = {}

    def add(*tensors: Any) -> None:
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    for parameter in model.parameters():
        add(parameter, getattr(parameter, "CB", None), getattr(parameter, "SCB", None))
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            add(state.absmax, state.code, state.offset)
            if state.state2 is not None:
                add(state.state2.absmax, state.state2.code)
    for module in model.modules():
        state = getattr(module, "state", None)
        add(getattr(state, "CB", None), getattr(state, "SCB", None))
    return sum(storages.values())


@pytest.mark.parametrize(
    ("use", "options"), [("nf4", {}), ("nf4", {"double_quant": False}), ("fp4", {"skip": ("attn.o",)}), ("int8", {})]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_predicted_bytes_are_held(
    use: str, options: dict[str, Any], precision: str, kind: str, quantised: Callable[..., Loaded]
) -> None:
    loaded = quantised(kind, use, precision, **options)
    terms = loaded.patch.memory(loaded.profile, loaded.options)
    predicted = forecast(loaded.profile, [terms], loaded.plan.precision, batch_tokens=0).weights
    assert predicted == pytest.approx(held(loaded.model), rel=0.01)


def test_bits_of_a_large_matrix_are_those_of_the_paper() -> None:
    """Section 3: 32/64 = 0.5 bits for the scales; with double quantisation 8/64 + 32/(64 x 256) = 0.127 bits."""
    from luthier.plugins._bitsandbytes.four_bit import matrix_bytes

    size = 8192 * 8192
    assert 8 * matrix_bytes((8192, 8192), double_quant=False) / size == pytest.approx(4.5, abs=1e-3)
    assert 8 * matrix_bytes((8192, 8192), double_quant=True) / size == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("use", "options"), [("nf4", {}), ("nf4", {"double_quant": False}), ("int8", {})])
def test_the_predicted_bytes_are_held_by_smollm2(use: str, options: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    from luthier.registry.models import resolve_model

    folder = shutil.copytree(resolve_model("smollm2-135m").path, tmp_path / "smollm2")
    loaded = Loaded(folder, use, "bf16", **options)
    terms = loaded.patch.memory(loaded.profile, loaded.options)
    predicted = forecast(loaded.profile, [terms], loaded.plan.precision, batch_tokens=0).weights
    assert predicted == pytest.approx(held(loaded.model), rel=0.01)
    assert loaded.plan.memory.weights < 0.75 * 2 * loaded.profile.parameters  # with the adapter's own
