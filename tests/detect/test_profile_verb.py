"""`luthier profile`: a tree that people can read, one JSON document for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli.profile import ranges, run
from luthier.core.profile import ArchitectureProfile
from luthier.core.serial import from_plain
from luthier.registry.detect import detect


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    from transformers import MixtralConfig

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
    MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4, sliding_window=8).save_pretrained(tmp_path)
    return tmp_path


def test_tree_shows_roles_sizes_attention_and_traits(mixtral: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(mixtral), as_json=False) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "mixtral MixtralForCausalLM"
    assert any(line.endswith("attn.k model.layers.*.self_attn.k_proj 64 -> 32 x2 4.1K") for line in lines)
    assert any(
        "mlp.experts.gate_up" in line and "64 -> 192" in line and "4 experts in one parameter" in line for line in lines
    )
    assert any("gqa, 4 heads of 16 on 2 key-value heads, window 8 layers 0-1" in line for line in lines)
    assert any("4 experts, 2 for each token" in line for line in lines)
    assert any("traits model.attention, model.moe" in line for line in lines)
    assert "not understood" not in out


def test_json_is_one_document_that_is_the_profile(mixtral: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(mixtral), as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert from_plain(ArchitectureProfile, document) == detect(mixtral)


def test_what_is_not_understood_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import HrmTextConfig

    HrmTextConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    assert run(str(tmp_path), as_json=False) == 0
    out = capsys.readouterr().out
    assert "not understood: 1" in out
    assert "model.H_module.layers.*: a further list of layers" in out


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0,), "0"),
        ((0, 1, 2, 3), "0-3"),
        ((0, 1, 3), "0-1, 3"),
        ((1, 3, 5, 7), "every 2nd from 1 to 7"),
        ((4, 12, 20), "every 8th from 4 to 20"),
        ((0, 5), "0, 5"),
        (tuple(n for n in range(40) if n % 5 not in (0, 2)), "1, 3-4, 6, 8-9, 11, 13-14, 16, ... (24 layers)"),
    ],
)
def test_layers_in_words(numbers: tuple[int, ...], words: str) -> None:
    assert ranges(numbers) == words
