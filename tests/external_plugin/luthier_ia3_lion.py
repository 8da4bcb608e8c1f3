"""IA3 through PEFT (Liu et al. 2022, arXiv:2205.05638) and Lion (Chen et al. 2023, arXiv:2302.06675) as a third party."""

from dataclasses import dataclass

from luthier.core.contracts import Adapter, MemoryTerms, OptimizerMethod, Support
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.schedule import OptimizerOptions

ROLES = ("attn.k", "attn.v", "mlp.down")


@dataclass(frozen=True, kw_only=True)
class LionConfig(OptimizerOptions):
    """Options of `signed_momentum`."""

    beta1: float = option(0.9, "Weight of the momentum in the update.", ge=0, lt=1)
    beta2: float = option(0.99, "Decay of the momentum.", ge=0, lt=1)
    weight_decay: float = option(0.0, "Decoupled weight decay.", ge=0)


def supports(profile, environment, config):
    missing = [role for role in ROLES if not profile.has(role)]
    return (
        Support.no(f"{profile.model_type} has no {', '.join(missing)}", "take adapter: lora") if missing else Support.yes()
    )


def attach(model, profile, config):
    import peft

    targets = list(profile.modules(ROLES))
    feedforward = list(profile.modules("mlp.down"))
    options = peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, options)


def memory(profile, config):
    scaled = {"attn.k": "out_features", "attn.v": "out_features", "mlp.down": "in_features"}
    sizes = [getattr(group, side) * group.count for role, side in scaled.items() for group in profile.groups(role)]
    return MemoryTerms(trainable=sum(sizes), added=sum(sizes), trainable_bytes=4)


def build(model, config):
    import torch

    class Lion(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in (each for each in group["params"] if each.grad is not None):
                    momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    update = torch.sign(momentum.lerp(parameter.grad, 1 - config.beta1))
                    parameter.sub_(update.add_(parameter, alpha=config.weight_decay), alpha=group["lr"])
                    momentum.lerp_(parameter.grad, 1 - config.beta2)

    return Lion([parameter for parameter in model.parameters() if parameter.requires_grad], {"lr": config.lr}), ()


@hookimpl
def luthier_adapters():
    yield Adapter(
        name="ia3",
        summary="Scales keys, values and MLP activations by trained vectors.",
        provides=frozenset({"base.frozen", "adapter.mergeable", "adapter.detachable", "reference.by_disabling"}),
        packages=("peft>=0.20",),
        supports=supports,
        attach=attach,
        merge=lambda model: model.merge_and_unload(),
        memory=memory,
    )


@hookimpl
def luthier_optimizers():
    state = MemoryTerms(optimizer_bytes=4)
    summary = "Steps of one size, by the sign of a momentum."
    yield OptimizerMethod(name="signed_momentum", summary=summary, config=LionConfig, build=build, memory=lambda *_: state)
