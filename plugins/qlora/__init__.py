"""The preset `qlora`: LoRA on base weights in 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

from collections.abc import Iterable

from luthier.core.extensions import Preset
from luthier.core.hookspecs import hookimpl


@hookimpl
def luthier_presets() -> Iterable[Preset]:
    yield Preset(
        name="qlora",
        slot="adapter",
        summary="LoRA on base weights that are kept in 4-bit NormalFloat.",
        config={"adapter": {"use": "lora"}, "patches": ["nf4"]},
    )
