"""Every installed attention kernel keeps the contract of attention, on every kind of model that it says yes to."""

from __future__ import annotations

from luthier.core.testing import AttentionKernelContract
from luthier.core.testing.surroundings import installed_catalog

# Windows on models that come without: they see eight tokens back, of 24.
WINDOWS = {
    "mixtral": {"sliding_window": 8},
    "phi3": {"sliding_window": 8},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
}

for _name in sorted(installed_catalog().slot("attention")):
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (AttentionKernelContract,), {"method": _name})
    _windowed = {"method": _name, "kinds": tuple(WINDOWS), "changes": WINDOWS}
    globals()[f"Test_{_name}_windows"] = type(f"Test_{_name}_windows", (AttentionKernelContract,), _windowed)


def test_there_is_attention() -> None:
    assert installed_catalog().slot("attention")
