"""nf4, fp4 and int8: what is quantised, to which values, in how many bytes, and that it trains rightly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.calling import call
from luthier.core.context import BuildContext
from luthier.core.contracts import NothingPatched
from luthier.core.dequantize import dequantized_weight, is_quantized_linear
from luthier.core.loading import load_model
from luthier.core.memory import forecast
from luthier.core.plan import Precision
from luthier.core.quantized import count_parameters
from luthier.registry.catalog import discover
from luthier.registry.detect import detect

SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mixtral": {"num_local_experts": 4},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
}
BITS = ("nf4", "fp4", "int8")
FORMATS = {"fp32": ("float32", "float32"), "bf16": ("bfloat16", "bfloat16"), "mixed": ("float32", "bfloat16")}


def precision_of(name: str) -> Precision:
    weights, compute = FORMATS[name]
    return Precision(name=name, weights=weights, compute=compute, why="")  # type: ignore[arg-type]


class Loaded:
    """A tiny model as a run has it after its patches of phase "loaded"."""

    def __init__(self, folder: Path, use: str, precision: str = "fp32", **options: Any) -> None:
        import luthier

        rows = folder.parent / "rows.jsonl"
        rows.write_text('{"instruction": "a", "output": "b"}\n')
        config = {
            "model": str(folder),
            "data": {"train": [str(rows)]},
            "stage": "sft",
            "adapter": "lora",
            "patches": [{"use": use, **options}],
            "precision": precision,
            "output": str(folder.parent / "run"),
        }
        self.plan = luthier.plan(config)
        self.profile = self.plan.profile
        self.patch: Any = discover().method("patches", use)
        self.options = self.patch.config(**options)
        self.notices: list[str] = []
        self.model: Any = load_model(self.plan)
        self.context = BuildContext(precision=self.plan.precision, notice=self.notices.append)
        self.undo = call(self.patch.apply, self.model, self.profile, self.options, context=self.context)

    @property
    def layers(self) -> dict[str, Any]:
        return {name: module for name, module in self.model.named_modules() if is_quantized_linear(module)}


@pytest.fixture
def quantised(tiny_folder: Callable[..., Path]) -> Callable[..., Loaded]:
    """`quantised("gpt2", "nf4", "bf16", skip=[...])`."""

    def make(kind: str, use: str, precision: str = "fp32", **options: Any) -> Loaded:
        return Loaded(tiny_folder(kind, **SMALL.get(kind, {})), use, precision, **options)

    return make


# ---- which weights


@pytest.mark.parametrize("use", BITS)
def test_exactly_the_projections_of_attention_and_mlp_are_quantised(
    use: str, kind: str, quantised: Callable[..., Loaded]
) -> None:
    loaded = quantised(kind, use)
    linear = {
        name
        for role in ("attn", "mlp")
        for group in loaded.profile.groups(role)
        if group.kind in ("linear", "conv1d")
        for name in group.names
    }
    assert set(loaded.layers) == linear
    assert f"{len(linear)} linear layers are quantised" in loaded.notices[0]
    assert ("4 fused expert weights are not" in loaded.notices[0]) == (kind == "mixtral")
    for name, module in loaded.layers.items():
        source = loaded.model.get_submodule(name)
        assert module.weight.requires_grad is False
        assert count_parameters(module.weight) == source.in_features * source.out_features
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("use", BITS)
def test_skip_leaves_roles_and_names_out(use: str, quantised: Callable[..., Loaded]) -> None:
    loaded = quantised("llama", use, skip=("mlp.down", "v_proj", "model.layers.0.*"))
    left = {"model.layers.1.self_attn." + name for name in ("q_proj", "k_proj", "o_proj")}
    assert set(loaded.layers) == left | {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"}
    assert loaded.model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "reason", "fix"),
    [
        ({"skip": ["mlp.dwon"]}, "skip: no module of llama is called 'mlp.dwon'", "mlp.down"),
        ({"skip": ["attn", "mlp"]}, "no linear projection of attention or MLP left", "shorten skip"),
    ],
)
@pytest.mark.parametrize("use", BITS)
def test_a_skip_that_means_nothing_or_everything_is_refused(
    use: str, options: dict[str, Any], reason: str, fix: str, tiny_folder: Callable[..., Path]
) -> None:
    from luthier.core.errors import PlanRefused

    with pytest.raises(PlanRefused) as caught:
        Loaded(tiny_folder("llama"), use, **options)
    assert [reason in problem.reason and fix in problem.fix for problem in caught.value.problems] == [True]


def test_a_model_without_such_projections_is_refused(tiny_folder: Callable[..., Path]) -> None:
    from luthier.core.environment import Environment

    profile = detect(tiny_folder("mamba", num_hidden_layers=2))
    patch: Any = discover().method("patches", "nf4")
    machine = Environment(python="3.11", platform="linux", cpu="x", cores=1, memory=1)
    answer = patch.supports(profile, machine, patch.config())
    assert answer.kind == "no"
    assert "mamba has no linear projection of attention or MLP" in answer.reason


@pytest.mark.parametrize("use", BITS)
def test_a_model_that_was_loaded_plain_is_an_error(use: str, load: Callable[[str], tuple[Any, Any]]) -> None:
    model, profile = load("llama")
    patch: Any = discover().method("patches", use)
    with pytest.raises(NothingPatched, match="no quantised layer"):
        call(patch.apply, model, profile, patch.config(), context=BuildContext(precision=precision_of("fp32")))


@pytest.mark.parametrize("use", BITS)
def test_fused_experts_are_said_with_their_share(use: str, quantised: Callable[..., Loaded]) -> None:
    loaded = quantised("mixtral", use)
    profile = loaded.profile
    share = sum(profile.role_parameters[f"mlp.experts.{part}"] for part in ("gate_up", "down")) / profile.parameters
    (warning,) = [text for text in loaded.plan.warnings if use in text]
    assert f"the experts ({share:.0%}) stay in the run's precision" in warning
    assert loaded.model.model.layers[0].mlp.experts.gate_up_proj.dtype == torch.float32


def test_unfused_experts_are_quantised() -> None:
    """Jamba before version 5 and others keep each expert as linear layers; here they are made by hand."""
    from luthier.core.frozen import FrozenDict
    from luthier.core.profile import ArchitectureProfile, RoleGroup
    from luthier.plugins._bitsandbytes.storage import storage_of

    group = RoleGroup(
        pattern="model.layers.*.experts.*.w1",
        kind="linear",
        shape=(8, 4),
        in_features=4,
        out_features=8,
        layers=(0, 1),
        experts=3,
    )
    profile = ArchitectureProfile(
        model_type="toy", architecture="Toy", decoder="model.layers", layers=2, layer_classes=("Layer",), hidden_size=4,
        vocab_size=9, roles=FrozenDict({"mlp.experts": (group,)}), parameters=200,
    )  # fmt: skip
    found = storage_of(profile, ())
    assert len(found.quantised) == 6
    assert found.weights == 6 * 32


# ---- to which values

# Dettmers et al. 2023, appendix E, where the values stand to 16 digits.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def nearest(weight: Any, values: Any) -> Any:
    """(out, in) float64: blocks of 64 in row order, each by its greatest absolute value, rounded to the nearest value."""
    blocks = weight.double().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    codes = (blocks / scale).unsqueeze(-1).sub(values).abs().argmin(-1)
    return (values[codes] * scale).reshape(weight.shape)


def original(folder_kind: str, tiny_folder: Callable[..., Path]) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(tiny_folder(folder_kind, **SMALL.get(folder_kind, {})) / "model.safetensors")


def test_nf4_weights_are_those_of_the_paper(quantised: Callable[..., Loaded], tiny_folder: Callable[..., Path]) -> None:
    """Equal but for weights that lie between two values to the last bit, of which there are none in 70,000."""
    plain = original("llama", tiny_folder)
    values = torch.tensor(NF4, dtype=torch.float64)
    for name, module in quantised("llama", "nf4", double_quant=False).layers.items():
        expected = nearest(plain[f"{name}.weight"], values)
        assert torch.allclose(dequantized_weight(module).double(), expected, atol=1e-7), name


def test_fp4_weights_are_those_of_the_format(quantised: Callable[..., Loaded], tiny_folder: Callable[..., Path]) -> None:
    """Sign, two bits of exponent, one of mantissa, scaled so that the greatest is 1: 0, 1/192, 1/6, 1/4, 1/3, ..., 1."""
    plain = original("llama", tiny_folder)
    positive = torch.tensor([0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1], dtype=torch.float64)
    values = torch.cat([-positive.flip(0), positive])
    for name, module in quantised("llama", "fp4", double_quant=False).layers.items():
        weight = plain[f"{name}.weight"]
        error = (dequantized_weight(module).double() - weight.double()).abs()
        best = (nearest(weight, values) - weight.double()).abs()
        scale = weight.abs().reshape(-1, 64).amax(1).repeat_interleave(64).reshape(weight.shape)
        # bitsandbytes rounds at thresholds of four digits: nowhere worse than the best by more than that.
        assert ((error - best) / scale).max() < 5e-4, name


def test_double_quantisation_moves_a_weight_by_less_than_its_scale_is_rounded(quantised: Callable[..., Loaded]) -> None:
    once, twice = (quantised("llama", "nf4", double_quant=double).layers for double in (False, True))
    for name in once:
        first, second = dequantized_weight(once[name]), dequantized_weight(twice[name])
        assert not torch.equal(first, second)
        scales = first.reshape(-1, 64).abs().amax(1)
        # 8 bits of dynamic exponent over the spread of the scales around their mean.
        allowed = (scales - scales.mean()).abs().max() * 0.05
        assert (first - second).abs().max() <= allowed, name


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_int8_weights_are_rounded_by_their_row(
    kind: str, quantised: Callable[..., Loaded], tiny_folder: Callable[..., Path]
) -> None:
    """Half a step of 1/127 of the row's greatest value, and float16's rounding before that."""
    plain = original(kind, tiny_folder)
    for name, module in quantised(kind, "int8").layers.items():
        weight = plain[f"{name}.weight"]
        weight = weight.T if kind == "gpt2" else weight
        found = dequantized_weight(module)
        assert found.shape == weight.shape
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((found - weight).abs() / step).max() < 0.5 + 127 * 2**-10
        assert module.weight.dtype == torch.int8


@pytest.mark.parametrize("use", BITS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_computes_with_the_weights_it_stores(use: str, precision: str, quantised: Callable[..., Loaded]) -> None:
    """Forward, and the gradient of the input, against float64 products with the dequantised weight."""
    module = quantised("gpt2", use, precision).layers["transformer.h.0.mlp.c_fc"]
    dtype = getattr(torch, FORMATS[precision][1])
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    slope = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    output = module(x)
    output.backward(slope)
    weight, bias = dequantized_weight(module).double(), module.bias.double()
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    expected = x.detach().double() @ weight.T + bias
    assert (output.double() - expected).abs().max() <= tolerance * expected.abs().max()
    wanted = slope.double() @ weight
    assert (x.grad.double() - wanted).abs().max() <= tolerance * wanted.abs().max()  # type: ignore[union-attr]


# ---- in which format


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "float32"), ("bf16", "bfloat16"), ("mixed", "bfloat16")])
@pytest.mark.parametrize("use", ["nf4", "fp4"])
def test_auto_computes_in_the_runs_format(use: str, precision: str, expected: str, quantised: Callable[..., Loaded]) -> None:
    loaded = quantised("llama", use, precision)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))  # float32 in: the input must not decide
    for module in loaded.layers.values():
        if module.in_features == 64:
            module(x)
        assert module.compute_dtype == getattr(torch, expected)
    norms = {parameter.dtype for name, parameter in loaded.model.named_parameters() if "norm" in name or "embed" in name}
    assert norms == {getattr(torch, FORMATS[precision][0])}


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_another_format_can_be_asked_for(asked: str, quantised: Callable[..., Loaded]) -> None:
    """Products in a narrow format come out representable in it; in float32 they do not."""
    loaded = quantised("llama", "nf4", "fp32", compute_dtype=asked)
    module = loaded.layers["model.layers.0.self_attn.q_proj"]
    out = module(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))
    assert out.dtype == torch.float32
    assert torch.equal(out, out.to(getattr(torch, asked)).float())
    assert torch.equal(out, out.bfloat16().float()) == (asked == "bfloat16")
    assert asked != "float32" or not torch.equal(out, out.half().float())


@pytest.mark.parametrize("stored", ["uint8", "bfloat16", "float16", "float32"])
def test_the_storage_type_changes_no_value(stored: str, quantised: Callable[..., Loaded]) -> None:
    loaded, usual = quantised("llama", "nf4", storage_dtype=stored), quantised("llama", "nf4")
    for name, module in loaded.layers.items():
        assert module.weight.dtype == getattr(torch, stored)
        assert torch.equal(dequantized_weight(module), dequantized_weight(usual.layers[name]))


def test_the_threshold_reaches_every_layer(quantised: Callable[..., Loaded]) -> None:
    for threshold in (0.0, 2.5):
        layers = quantised("llama", "int8", threshold=threshold).layers.values()
        assert {module.state.threshold for module in layers} == {threshold}
    module = quantised("llama", "int8", threshold=2.5).layers["model.layers.0.self_attn.q_proj"].eval()
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    x[1, 7] = 90.0  # an outlying feature: quantised with the rest, it would leave them a step of 90/127
    exact = x.double() @ dequantized_weight(module).double().T
    with_outlier = (module(x).double() - exact).abs().max()
    module.state.threshold = 0.0
    assert with_outlier < 0.1 * (module(x).double() - exact).abs().max()


# ---- in how many bytes


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


# ---- training


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
