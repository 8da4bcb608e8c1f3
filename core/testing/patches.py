"""The contract of model patches: they change something, as declared, and take all of it back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, Final

import torch
from torch import nn

from luthier.core.calling import call
from luthier.core.contracts import ModelPatch, Phase, Undo
from luthier.core.errors import Problem
from luthier.core.memory import layer_elements_per_token
from luthier.core.optimizing import trained_parameters
from luthier.core.plan import Dtype
from luthier.core.quantized import settle
from luthier.core.resolve.picks import Pick, Situation
from luthier.core.testing import measuring
from luthier.core.testing.adapters import CLOSE, SAME
from luthier.core.testing.contract import Case, Contract, Verdict, adapters_beside, attach, build_context
from luthier.core.testing.fingerprint import code, differences, fingerprint
from luthier.core.testing.measuring import difference, gradients, logits
from luthier.core.testing.models import tiny_tokenizer, token_batch

DTYPES: Final[tuple[Dtype, ...]] = ("float32", "bfloat16")


class ModelPatchContract(Contract):
    """For a `ModelPatch`. See `Contract` for what can be set, and besides:

    tolerance            how far the output of a "close" patch may be from the plain model's, as a part of the greatest logit
    gradient_tolerance   the same of gradients
    """

    slot: ClassVar[str] = "patches"
    tolerance: ClassVar[float] = CLOSE
    gradient_tolerance: ClassVar[float] = 1e-3

    # ---- what is looked at

    @property
    def patch(self) -> ModelPatch[Any]:
        patch = self.description
        assert isinstance(patch, ModelPatch)
        return patch

    def partners(self, situation: Situation) -> Iterable[Pick | None]:
        return adapters_beside(situation)

    def _verdict(self, case: Case) -> Verdict:
        verdict = super()._verdict(case)
        if self.patch.isolate and not verdict.problems:
            alone = Problem(reason="it has to be imported first, in a process of its own", kind="environment")
            return dataclasses.replace(verdict, problems=(alone,))
        return verdict

    def tokenizer(self, case: Case) -> Any:
        """A new one, with what the patch does to it."""
        tokenizer = copy.deepcopy(tiny_tokenizer())
        if self.patch.edit_tokenizer is not None:
            self.patch.edit_tokenizer(tokenizer, self.profile(case), self.pick(case).config)
        return tokenizer

    def apply(self, case: Case, model: nn.Module | None, dtype: Dtype = "float32") -> Undo:
        """The patch on its own."""
        context = build_context(dtype, self.tokenizer(case))
        torch.manual_seed(0)
        return call(self.patch.apply, model, self.profile(case), self.pick(case).config, context=context)

    def loaded(self, case: Case, dtype: Dtype = "float32") -> Any:
        """The model as the patch wants it loaded."""
        options = self.patch.load_options(self.profile(case), self.pick(case).config)
        model = case.tiny.load(getattr(torch, dtype), **options)
        settle(model, build_context(dtype).precision)  # as core/loading.py does
        return model

    def adapted(self, case: Case, model: nn.Module, dtype: Dtype = "float32") -> Any:
        """With the adapter that the patch combines with, moved away from where it starts."""
        partner = self.verdict(case).partner
        assert partner is not None
        model = attach(partner, model, self.profile(case), build_context(dtype)).eval()
        if "base.frozen" in partner.declaration.provides:
            measuring.shake(model)
        return model

    def patched(self, case: Case, dtype: Dtype = "float32") -> Patched:
        """The model to train, built in the order of a run; give it back with `undo`."""
        undo: Undo | None = None

        def apply(phase: Phase, model: nn.Module | None) -> None:
            nonlocal undo
            if self.patch.phase == phase:
                undo = self.apply(case, model, dtype)

        apply("load", None)
        model = self.loaded(case, dtype)
        apply("loaded", model)
        model = self.adapted(case, model, dtype)
        apply("attached", model)
        assert undo is not None
        return Patched(model, undo)

    def plain(self, case: Case) -> Any:
        """The same without the patch, and without what it asked for when the model was loaded."""
        return self.adapted(case, self.load(case))

    # ---- what it promises

    def test_it_changes_something_and_takes_it_back(self, case: Case) -> None:
        """Modules, forwards, hooks, attributes, values, configuration, code, tokenizer: one is changed, all are as before.

        What decides how weights are stored ("weights.storage") may leave the model as it made it: its code has to come back.
        """
        model = self.load(case) if self.patch.phase == "load" else self.loaded(case)
        if self.patch.phase == "attached":
            model = self.adapted(case, model)
        before, own_code, numbers = fingerprint(model), code(model), logits(model)
        undo = self.apply(case, None if self.patch.phase == "load" else model)
        done = differences(before, fingerprint(model))
        asked = self.patch.load_options(self.profile(case), self.pick(case).config)
        retold = self.tokenizer(case).get_vocab() != tiny_tokenizer().get_vocab()
        assert done or asked or retold, "it changed nothing and did not raise NothingPatched"
        measuring.loss_of(model.train(), token_batch())  # some patches do their work when they are first used
        undo()
        model.eval()
        stored = "weights.storage" in self.pick(case).declaration.claims
        after = fingerprint(model)
        left = [name for name in differences(before, after) if not stored or (name in own_code and name in after)]
        assert not left, f"taken back, {len(left)} things are not what they were, first {left[0]}"
        off = difference(logits(model), numbers)
        assert stored or off <= SAME, f"taken back, the output is {off:.2e} of it away from what it was"

    def test_it_can_be_applied_again(self, case: Case) -> None:
        """After it was taken back, with the same effect."""
        outputs = []
        for _ in range(2):
            with self.patched(case) as model:
                outputs.append(logits(model))
        off = difference(outputs[1], outputs[0])
        assert off <= SAME, f"applied a second time, the output is {off:.2e} of it away from that of the first"

    def test_the_numbers_are_as_declared(self, case: Case) -> None:
        """ "exact" and "close": output and gradients of the plain model; "changes": some numbers."""
        plain = self.plain(case).train()
        expected, (loss, slopes) = logits(plain), gradients(plain)
        with self.patched(case) as model:
            model.train()
            found, (own_loss, own_slopes) = logits(model), gradients(model)
        assert torch.isfinite(found).all(), "the patched model gives no numbers"
        if self.patch.numerics == "changes":
            return
        name, allowed = (self.patch.numerics, SAME if self.patch.numerics == "exact" else self.tolerance)
        off = difference(found, expected)
        assert off <= allowed, f'numerics is "{name}", and the output is {off:.2e} of it away from the plain model\'s'
        assert abs(own_loss - loss) <= max(allowed, 1e-5) * abs(loss), (
            f'numerics is "{name}": the loss is {own_loss}, not {loss}'
        )
        both = own_slopes.keys() & slopes.keys()  # what is stored otherwise may train in one of them only
        own_slopes, slopes = ({key: found[key] for key in sorted(both)} for found in (own_slopes, slopes))
        wrong = measuring.wrong_gradients(own_slopes, slopes, 1e-5 if name == "exact" else self.gradient_tolerance)
        assert not wrong, f'numerics is "{name}", and the gradient is another: {wrong}'

    def test_gradients_flow(self, case: Case) -> None:
        """To everything that trains, in float32 and beside bfloat16 weights."""
        for dtype in DTYPES:
            with self.patched(case, dtype) as model:
                loss, found = gradients(model.train())
                lacking = sorted(set(trained_parameters(model)) - set(found))
            assert loss == loss, f"in {dtype} the loss is no number"
            assert not lacking, f"in {dtype}, {len(lacking)} trained parameters get no gradient, first {lacking[0]}"
            bad = [name for name, gradient in found.items() if not torch.isfinite(gradient).all()]
            assert not bad, f"in {dtype} the gradient of {bad[0]} is no number"

    def test_training_goes_on_after_an_evaluation(self, case: Case) -> None:
        """The same gradient before and after the model was used in evaluation mode."""
        for dtype in DTYPES:
            with self.patched(case, dtype) as model:
                _, before = gradients(model.train())
                logits(model)
                _, after = gradients(model.train())
            wrong = measuring.wrong_gradients(after, before, 1e-5)
            assert not wrong, f"in {dtype}, after an evaluation the gradient is another: {wrong}"

    def test_the_memory_is_plausible(self, case: Case) -> None:
        """Activations above none and at most the model's own; storage of no more parameters than there are."""
        terms, profile = self.memory(case), self.profile(case)
        whole = layer_elements_per_token(profile) * profile.layers
        assert terms.recomputed >= 0, f"recomputed is {terms.recomputed}"
        # With inputs elsewhere the layers keep nothing, and the one that is computed again is all there is.
        kept = terms.activation_scale + terms.recomputed / max(whole, 1)
        of_which = f", and with the {terms.recomputed} numbers of recomputed {kept:.3g}" if terms.recomputed else ""
        assert terms.activation_scale >= 0, f"activation_scale is {terms.activation_scale}"
        assert 0 < kept <= 1, f"activation_scale is {terms.activation_scale}{of_which}"
        stored = terms.stored_parameters
        assert stored is None or 0 < stored <= profile.parameters, f"{stored} stored parameters, of {profile.parameters}"
        if "weights.quantized" in self.pick(case).declaration.provides:
            assert terms.weight_bytes is not None, "weights are quantised, and memory() gives no weight_bytes"
        if "activations.recomputed" in self.pick(case).declaration.provides:
            assert kept < 1 or profile.layers == 1, "activations are recomputed, and none are saved"


@dataclasses.dataclass
class Patched:
    """A patched model for the length of a block."""

    model: Any
    undo: Undo

    def __enter__(self) -> Any:
        return self.model

    def __exit__(self, *_: object) -> None:
        self.undo()
