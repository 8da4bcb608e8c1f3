"""The contract of adapters: which parameters train, and that they can be saved, loaded, folded in and switched off."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import nn

from luthier.core.contracts import Adapter
from luthier.core.optimizing import trained_parameters
from luthier.core.plan import Dtype
from luthier.core.references import ReferencePolicy
from luthier.core.saving import ADAPTER_CONFIG, load_trained, quiet, save_trained
from luthier.core.testing import measuring
from luthier.core.testing.contract import Case, Contract, attach, build_context
from luthier.core.testing.measuring import difference, gradients, logits
from luthier.core.testing.models import token_batch

# As parts of the greatest logit, in float32: what a sum in another order may give.
SAME: Final = 2e-6
CLOSE: Final = 1e-3


class AdapterContract(Contract):
    """For an `Adapter`. See `Contract` for what can be set, and besides:

    exact_gradients      False for a method whose paper leaves a part of the gradient out on purpose, as DoRA that of a norm:
                         then it is compared with itself in float64, and not with the loss
    gradient_tolerance   how far a float32 gradient may be from the float64 one, as a part of it
    """

    slot: ClassVar[str] = "adapter"
    exact_gradients: ClassVar[bool] = True
    gradient_tolerance: ClassVar[float] = 1e-3

    # ---- what is looked at

    def base(self, case: Case, dtype: Dtype = "float32") -> Any:
        """The model before anything is attached."""
        pick = self.pick(case)
        options = pick.method.load_options(self.profile(case), pick.config)
        return self.load(case, dtype, options)

    def attached(self, case: Case, base: nn.Module | None = None, dtype: Dtype = "float32") -> Any:
        """The model to train, in evaluation mode."""
        model = self.base(case, dtype) if base is None else base
        return attach(self.pick(case), model, self.profile(case), build_context(dtype)).eval()

    def provides(self, case: Case, trait: str) -> bool:
        return trait in self.pick(case).declaration.provides

    @property
    def adapter(self) -> Adapter[Any]:
        adapter = self.description
        assert isinstance(adapter, Adapter)
        return adapter

    # ---- what it promises

    def test_the_output_at_attach(self, case: Case) -> None:
        """As before for "exact" and "close"; some number for "changes"."""
        base = self.base(case)
        before = logits(base)
        after = logits(self.attached(case, base))
        assert torch.isfinite(after).all(), "the model gives no numbers once the adapter is on it"
        if self.adapter.numerics != "changes":
            allowed = SAME if self.adapter.numerics == "exact" else CLOSE
            off = difference(after, before)
            assert off <= allowed, (
                f'numerics is "{self.adapter.numerics}", and attaching moves the output by {off:.2e} of it'
            )

    def test_exactly_the_declared_parameters_train(self, case: Case) -> None:
        base = self.base(case)
        own = {id(parameter): name for name, parameter in base.named_parameters()}
        model = self.attached(case, base)
        trained = trained_parameters(model)
        count = sum(parameter.numel() for parameter in trained.values())
        terms = self.memory(case)
        assert count, "no parameter trains"
        assert count == terms.trainable, f"{count} parameters train, memory() declares {terms.trainable}"
        if terms.matrices:
            declared = sum(matrix.size * matrix.count for matrix in terms.matrices)
            assert declared == count, f"{count} parameters train, the matrices of memory() add up to {declared}"
            shapes: dict[tuple[int, ...], int] = {}
            for matrix in terms.matrices:
                shapes[matrix.shape] = shapes.get(matrix.shape, 0) + matrix.count
            for parameter in trained.values():
                shapes[tuple(parameter.shape)] = shapes.get(tuple(parameter.shape), 0) - 1
            wrong = {shape: number for shape, number in shapes.items() if number}
            assert not wrong, f"memory() declares matrices that do not train, or not these (shape: too many): {wrong}"
        if self.provides(case, "base.frozen"):
            moving = [own[id(parameter)] for parameter in trained.values() if id(parameter) in own]
            assert not moving, f"base.frozen is declared, and {moving[0]} of the base model trains"

    def test_the_memory_is_as_declared(self, case: Case) -> None:
        """What is added, and how wide it is beside bfloat16 weights."""
        pick = self.pick(case)
        terms = pick.method.memory(dataclasses.replace(self.profile(case), dtype="bfloat16"), pick.config)
        base = self.base(case, "bfloat16")
        before = sum(parameter.numel() for parameter in base.parameters())
        model = self.attached(case, base, "bfloat16")
        added = sum(parameter.numel() for parameter in model.parameters()) - before
        assert added == terms.added, f"{added} parameters were added, memory() declares {terms.added}"
        held = sum(parameter.nbytes for parameter in trained_parameters(model).values())
        width = 2.0 if terms.trainable_bytes is None else terms.trainable_bytes
        declared = terms.trainable * width
        assert abs(held - declared) <= 0.01 * declared, (
            f"what trains takes {held} bytes beside bfloat16 weights, memory() declares {declared:.0f}"
        )

    def test_gradients_are_right(self, case: Case) -> None:
        """Against the same model in float64, and there against differences of the loss itself."""
        model = self.attached(case)
        measuring.shake(model)
        _, found = gradients(model)
        lacking = sorted(set(trained_parameters(model)) - set(found))
        assert not lacking, f"{len(lacking)} trained parameters get no gradient, first {lacking[0]}"
        with measuring.float64(model):
            _, reference = gradients(model)
            wrong = measuring.wrong_slope(model, reference) if self.exact_gradients else ""
        assert not wrong, f"the gradient is not that of the loss: {wrong}"
        wrong = measuring.wrong_gradients(found, reference, self.gradient_tolerance)
        assert not wrong, f"in float32 the gradient is not that in float64: {wrong}"

    def test_a_step_changes_only_what_trains(self, case: Case) -> None:
        model = self.attached(case).train()
        measuring.shake(model)
        rest, moving = measuring.state(model, trained=False), measuring.state(model, trained=True)
        trained = trained_parameters(model)
        optimizer = torch.optim.SGD(trained.values(), lr=1.0)
        measuring.loss_of(model, token_batch()).backward()
        idle = [name for name, parameter in trained.items() if parameter.grad is not None and not parameter.grad.any()]
        assert not idle, f"the loss does not depend on {len(idle)} tensors that train, first {idle[0]}"
        optimizer.step()
        touched = measuring.changed(model, rest)
        assert not touched, f"a step changed {len(touched)} tensors that do not train, first {touched[0]}"
        assert measuring.changed(model, moving), "a step changed nothing that trains"

    def test_saved_and_loaded_is_the_same(self, case: Case, tmp_path: Path) -> None:
        """Into a freshly attached model, as a resumed run does it; and what trained there trains on."""
        model = self.attached(case)
        measuring.shake(model)
        save_trained(model, tmp_path, self.adapter)
        fresh = self.attached(case)
        trains = set(trained_parameters(fresh))
        loaded = load_trained(fresh, tmp_path, self.adapter, trainable=True).eval()
        off = difference(logits(loaded), logits(model))
        assert off <= SAME, f"saved and loaded, the output differs by {off:.2e} of it"
        assert set(trained_parameters(loaded)) == trains, "after loading, other parameters train than before"
        saved, kept = measuring.state(model, trained=True), measuring.state(loaded, trained=True)
        lost = [name for name, tensor in saved.items() if not torch.equal(tensor, kept[name])]
        assert not lost, f"{len(lost)} trained tensors did not come back as they were saved, first {lost[0]}"

    def test_other_libraries_load_it(self, case: Case, tmp_path: Path) -> None:
        """Plain PEFT beside the base model, or plain transformers, where it is saved in their layout."""
        model = self.attached(case)
        measuring.shake(model)
        save_trained(model, tmp_path, self.adapter)
        if not any((tmp_path / name).is_file() for name in (ADAPTER_CONFIG, "config.json")):
            return  # a layout of its own
        with quiet():
            if (tmp_path / ADAPTER_CONFIG).is_file():
                from peft import PeftModel

                loaded: Any = PeftModel.from_pretrained(self.base(case), str(tmp_path)).eval()
            else:
                from transformers import AutoModelForCausalLM

                loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32).eval()
        off = difference(logits(loaded), logits(model))
        assert off <= CLOSE, f"without Luthier, the output of what was saved differs by {off:.2e} of it"

    def test_merged_is_unmerged(self, case: Case) -> None:
        """Where it can be folded into the weights, the result is a plain model with the same output."""
        if not self.provides(case, "adapter.mergeable") and self.adapter.merge is None:
            return
        assert self.adapter.merge is not None, "adapter.mergeable is declared, and there is no `merge`"
        if self.provides(case, "adapter.detachable") and not self.provides(case, "adapter.mergeable"):
            return  # with these options it says that it cannot be folded in
        model = self.attached(case)
        measuring.shake(model)
        before = logits(model)
        merged = self.adapter.merge(model)
        left = [name for name, module in merged.named_modules() if type(module).__module__.partition(".")[0] == "peft"]
        assert not left, f"{len(left)} modules were not folded in, first {left[0]}"
        off = difference(logits(merged.eval()), before)
        assert off <= CLOSE / 10, f"merging moves the output by {off:.2e} of it"

    def test_switched_off_is_the_base(self, case: Case) -> None:
        """`reference.by_disabling` is declared where it is so, and only there: for what PEFT can switch off, it is tried."""
        claimed = self.provides(case, "reference.by_disabling")
        model = self.attached(case)
        before = logits(model)
        measuring.shake(model)
        switch = getattr(model, "disable_adapter", None)
        if switch is None:
            assert not claimed, "reference.by_disabling is declared, and the model has no `disable_adapter`"
            return
        with warnings.catch_warnings(), switch():
            warnings.simplefilter("ignore")  # PEFT's, that trained biases stay on: this is what is measured
            off = difference(logits(model), before)
        if claimed:
            assert off <= SAME, f"reference.by_disabling is declared, and switched off the output is {off:.2e} from the base"
        else:
            assert off > SAME, "switched off it is the base again: declare reference.by_disabling"

    def test_a_copy_stands_beside_it(self, case: Case) -> None:
        """`adapter.copies`: a frozen copy goes on computing what was there when it was made, and changes nothing else."""
        if not self.provides(case, "adapter.copies"):
            return
        model = self.attached(case)
        measuring.shake(model)
        before, trained = logits(model), trained_parameters(model)
        reference = ReferencePolicy(model, "copied")
        assert difference(logits(model), before) == 0, "a copy beside it moves the output"
        assert set(trained_parameters(model)) == set(trained), "a copy changes what trains"
        measuring.shake(model)
        moved = logits(model)
        assert difference(moved, before) > SAME, "nothing that trains was moved, so nothing was tried"
        with reference() as frozen:
            off = difference(logits(frozen), before)
        assert off <= SAME, f"adapter.copies is declared, and the copy's output is {off:.2e} from what was copied"
        assert difference(logits(model), moved) == 0, "after a look at the copy the model computes something else"

    def test_checkpointing(self, case: Case) -> None:
        """Layers that are computed again in the backward pass give the same gradients."""
        if not self.profile(case).gradient_checkpointing:
            return
        model = self.attached(case).train()
        measuring.shake(model)
        _, expected = gradients(model)
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:  # transformers before 5.23
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        _, found = gradients(model)
        wrong = measuring.wrong_gradients(found, expected, 1e-5)
        assert not wrong, f"with checkpointing the gradient is another: {wrong}"

    def test_bfloat16(self, case: Case) -> None:
        """Beside bfloat16 weights: a loss near that in float32, and a finite gradient for all that trains."""
        single = self.attached(case)
        measuring.shake(single)
        half = self.attached(case, dtype="bfloat16").train()
        measuring.shake(half)
        expected, _ = gradients(single)
        loss, found = gradients(half)
        assert abs(loss - expected) <= 0.1 * abs(expected), (
            f"the loss is {loss:.3f} in bfloat16 and {expected:.3f} in float32"
        )
        assert set(found) == set(trained_parameters(half)), "in bfloat16 a trained parameter gets no gradient"
        bad = [name for name, gradient in found.items() if not torch.isfinite(gradient).all()]
        assert not bad, f"in bfloat16 the gradient of {bad[0]} is no number"
