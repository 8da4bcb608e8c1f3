"""The vocabulary in which methods say what they make true, need, and cannot bear.

A **trait** is a fact about the run ("base.frozen"); a method provides some, requires some, conflicts with some. A
**claim** is something that only one method of a run may own ("loss.forward"). Third parties add their own, dotted
and prefixed with their plugin's name; those need no entry here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

Trait: TypeAlias = str
Claim: TypeAlias = str

TRAITS: Final[dict[Trait, str]] = {
    # the weights
    "weights.quantized": "the base weights are stored in fewer bits than they compute in",
    "weights.quantized.4bit": "... in 4 bits (NF4, FP4, GPTQ, ...)",
    "weights.quantized.8bit": "... in 8 bits (int8, fp8, ...)",
    "weights.no_dora": "the stored weights cannot be read back, as DoRA needs them for its norms",
    "base.frozen": "no weight of the base model trains",
    "base.partly_frozen": "some weights of the base model train, others are frozen",
    "base.changed": "the model is made another than the published one before it trains: an adapter fits only that one",
    "embeddings.trained": "the rows of the vocabulary train, in the embeddings and in a head with a matrix of its own",
    "vocabulary.extended": "the tokenizer has tokens that the model came without",
    "params.full_rank": "whole weight matrices train, so their gradients are full matrices",
    # adapters
    "adapter.low_rank": "the trained update is a product of two thin matrices",
    "adapter.magnitude": "a magnitude that trains scales each row of an adapted weight, its low-rank update included",
    "adapter.mergeable": "the update can be folded into the base weights",
    "adapter.detachable": "what was trained is saved beside the base model, not as a whole model",
    "adapter.copies": "a second, frozen copy of what is trained can stand beside it on the same base",
    "adapter.stacks": "it can train on top of saved adapters that stay as they are (its option `stack_on`)",
    # the reference model of preference and reinforcement stages
    "reference.by_disabling": "switching the adapter off gives exactly the base model",
    "reference.model": "a separate reference model is held in memory",
    "model.score_head": "the model has a head of one number in place of its language-model head",
    # optimizers
    "optimizer.layerwise": "gradients are taken up and freed during the backward pass, each as it comes",
    "optimizer.low_rank_state": "the optimizer keeps its state in a projected, smaller space",
    # attention and batches
    "attention.packed": "the attention keeps the documents of a packed batch apart",
    "batches.packed": "several rows stand in one sequence, without padding and mask, told apart by their positions",
    "rows.held_out": "rows are held out to evaluate the model on",
    "rows.evaluated": "they are evaluated while the model trains, not only at the end",
    "rows.all_learned": "every token is learned, so that nothing tells questions from answers",
    "stage.packs": "the stage can learn from packed batches",
    "stage.streams": "the stage can learn from rows that are read while it trains",
    "activations.recomputed": "activations of some layers are recomputed in the backward pass",
    # the model, from its profile
    "model.prequantized": "the checkpoint arrives quantised",
    "model.moe": "the model routes tokens to experts",
    "model.tied_embeddings": "input embeddings and output head share one matrix",
    "model.attention": "at least one layer has softmax attention",
    "model.recurrent": "at least one layer carries a state along the sequence (state-space, linear attention, convolution)",
    "model.conv1d": "projections are transformers' Conv1D, whose weight is transposed",
    # the machine and the way the run is started
    "device.cpu": "the run is on the CPU",
    "device.cuda": "the run is on a CUDA device",
    "engine.single": "one process trains",
    "engine.ddp": "data-parallel processes with replicated weights",
    "engine.fsdp": "weights sharded by FSDP",
    "engine.deepspeed": "weights or states sharded by DeepSpeed",
}

CLAIMS: Final[dict[Claim, str]] = {
    "attention.forward": "replaces the computation of attention",
    "loss.forward": "replaces the computation of logits and loss",
    "mlp.forward": "replaces the forward of the MLP blocks",
    "norm.forward": "replaces the forward of the norms",
    "lora.forward": "replaces the forward of low-rank adapted linear layers",
    "embeddings.noise": "adds noise to the input embeddings",
    "positions.scale": "decides how positions are stretched for a longer context",
    "layer.checkpoint": "decides which layers recompute their activations",
    "weights.storage": "decides how the base weights are stored",
    "optimizer.step": "takes the optimizer step",
}


@dataclass(frozen=True)
class AnyOf:
    """A requirement that is met when at least one of these traits is true of the run."""

    traits: frozenset[Trait]

    def met_by(self, facts: frozenset[Trait]) -> bool:
        return bool(self.traits & facts)

    def __str__(self) -> str:
        return " or ".join(sorted(self.traits))


def any_of(*traits: Trait) -> AnyOf:
    """`any_of("params.full_rank", "base.partly_frozen")`: one of them is enough."""
    return AnyOf(frozenset(traits))
