"""What the adapted layers see of the first training batches: for the initialisations that go by the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from luthier.core.context import BuildContext
from luthier.core.contracts import NothingPatched
from luthier.core.errors import DataError
from luthier.plugins._peft.low_rank import weight_of

IGNORED: Final = -100
SEED: Final = 0


class Directions:
    """The leading directions of rows that arrive in pieces, by incremental PCA: about their mean, orthonormal, (rank, in).

    Twice as many are kept meanwhile, so that what is cut off between the pieces is not missed; and a piece has at least four
    times the rank, so that none is too small for its directions.
    """

    def __init__(self, rank: int, features: int) -> None:
        self.rank = rank
        kept = min(2 * rank, features)
        self.smallest = max(4 * rank, 64)
        # The randomised SVD looks at twice as many directions as are kept.
        lowrank = 2 * kept <= min(features, self.smallest)
        self.pca = IncrementalPCA(n_components=kept, lowrank=lowrank, lowrank_seed=SEED if lowrank else None)
        self.pending: list[Tensor] = []
        self.seen = 0

    def add(self, rows: Tensor) -> None:
        """rows (n, in)"""
        self.pending.append(rows.float())
        self.seen += len(rows)
        if sum(map(len, self.pending)) >= 2 * self.smallest:
            whole = torch.cat(self.pending)
            # What stays behind is enough for the last piece; a view would keep all of the batch.
            self.pending = [whole[-self.smallest :].clone()]
            self.pca.partial_fit(whole[: -self.smallest])

    def finish(self) -> Tensor:
        """Raises NothingPatched with the number of rows when they are fewer than the directions."""
        rows = torch.cat(self.pending) if self.pending else torch.empty(0, 1)
        if len(rows) < self.rank:
            reason = f"init eva saw {self.seen} trained tokens in its batches, fewer than the rank"
            raise NothingPatched(f"lora: {reason}; raise init_batches or lower the rank")
        if len(rows) < self.smallest:  # all there is
            self.pca = IncrementalPCA(n_components=self.rank)
        self.pca.partial_fit(rows)
        directions: Tensor = self.pca.components_[: self.rank].float()
        return directions


class Covariance:
    """The second moments of rows (n, in) that arrive in pieces, in float32: memory in x in."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """rows (n, in)"""
        self.total += rows.float().T @ rows.float()

    def finish(self) -> Tensor:
        """(in, in), its mean on the diagonal 1, with a hundredth of that added so that it can be inverted; made in place."""
        total = torch.as_tensor(self.total)
        total.div_(total.diagonal().mean())
        total.diagonal().add_(0.01)
        return total


class Watch:
    """Forward hooks that add what modules see to an accumulator for each; modules that share their input share it too."""

    def __init__(self, accumulator: Callable[[int], Any]) -> None:
        self.accumulator = accumulator  # called with the number of features
        self.mask = torch.empty(0)  # (B, T): which tokens count
        self.owner: dict[str, str] = {}
        self.found: dict[str, Any] = {}
        self._last: tuple[Tensor | None, str] = (None, "")

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            before, owner = self._last
            # Query, key and value projections are called one after the other with one tensor.
            owner = self.owner.setdefault(name, owner if inputs[0] is before else name)
            self._last = (inputs[0], owner)
            if owner == name:
                rows = self._by_token(inputs[0], name)[self.mask]
                self.found.setdefault(name, self.accumulator(rows.shape[-1])).add(rows)

        return see

    def _by_token(self, seen: Tensor, name: str) -> Tensor:
        """(B, T, in). Some blocks, as shared experts and routers, are given the tokens of all rows in one: (B T, in)."""
        shape = self.mask.shape
        if seen.shape[:-1] not in (shape, (shape.numel(),)):
            raise NothingPatched(
                f"lora: {name} sees a tensor {tuple(seen.shape)} for a batch of {shape[0]} x {shape[1]} tokens, so that the "
                "tokens of its rows are not known; leave it out of target, or take another init"
            )
        return seen.reshape(*shape, -1)

    def finish(self) -> Iterator[tuple[str, Tensor]]:
        """Result by module name, those that share it one after the other. Each accumulator is let go as its turn comes."""
        for owner in list(self.found):
            result = self.found.pop(owner).finish()
            yield from ((name, result) for name, its in self.owner.items() if its == owner)


@torch.no_grad()  # type: ignore[untyped-decorator]
def input_directions(
    model: nn.Module, ranks: Mapping[str, int], batches: int, context: BuildContext | None
) -> dict[str, Tensor]:
    """EVA: A (rank, in) for every module in `ranks`, the leading directions of its inputs at the trained tokens."""
    highest = max(ranks.values())
    watch = Watch(lambda features: Directions(min(highest, features), features))
    _run(model, ranks, batches, context, watch, trained_only=True)
    return {name: directions[: ranks[name]] for name, directions in watch.finish()}


@torch.no_grad()  # type: ignore[untyped-decorator]
def covariance_factors(
    model: nn.Module, ranks: Mapping[str, int], batches: int, method: str, context: BuildContext | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """CorDA: A (rank, in) and B (out, rank) by module name, from its weight (out, in) and the covariance C of its inputs.

    W C = U S V', so that W = U S (V' C^-1); of these directions the first are those that the data uses most (ipm), the last
    those that it uses least (kpm).
    """
    watch = Watch(lambda features: Covariance())
    _run(model, ranks, batches, context, watch, trained_only=False)
    factors = {}
    for name, covariance in watch.finish():
        left, values, right = torch.linalg.svd(weight_of(model.get_submodule(name)) @ covariance, full_matrices=False)
        chosen = slice(None, ranks[name]) if method == "ipm" else slice(len(values) - ranks[name], None)
        root = values[chosen].sqrt()
        directions = torch.linalg.solve(covariance, right[chosen].T).T  # C is symmetric
        factors[name] = (root[:, None] * directions, left[:, chosen] * root)
    return factors


def _run(
    model: nn.Module, names: Iterable[str], batches: int, context: BuildContext | None, watch: Watch, *, trained_only: bool
) -> None:
    """The first batches through the model, watched. Raises NothingPatched where a module was never called."""
    with _watched(model, {name: watch.hook(name) for name in names}):
        for batch in training_batches(batches, context):
            present = batch["attention_mask"].bool()
            watch.mask = present & (batch["labels"] != IGNORED) if trained_only else present
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    lost = sorted(set(names) - set(watch.owner))
    if lost:
        raise NothingPatched(f"lora: the first {batches} batches never reach {lost[0]}, so nothing is known of its inputs")


def training_batches(count: int, context: BuildContext | None) -> Iterator[dict[str, Tensor]]:
    """The first batches of the run. Raises DataError where there is none."""
    found = 0
    for batch in context.batches(count) if context is not None else ():
        found += 1
        yield batch
    if not found:
        raise DataError("there are no training rows to start from", where="adapter.init", fix="take another init")


@contextmanager
def _watched(model: nn.Module, hooks: Mapping[str, Any]) -> Iterator[None]:
    """The model in evaluation mode, its modules watched; as it was afterwards."""
    training = {name: module.training for name, module in model.named_modules()}
    handles = [model.get_submodule(name).register_forward_pre_hook(hook) for name, hook in hooks.items()]
    model.eval()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, module in model.named_modules():
            module.training = training[name]
