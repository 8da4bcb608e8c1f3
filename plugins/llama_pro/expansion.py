"""Block expansion: copies of decoder layers that add nothing to the residual stream until they have learned something.

    h ── layer i ──(+)── copy of layer i, its output projections zero ──(+)── layer i + 1 ──
                    h'                                                   h'

The model stays one that transformers builds from its config.json: the number of layers and every list with an entry per
layer grow with it, and so does each number that a module holds about its place. That nothing was forgotten is checked
twice: against a model built anew from the grown configuration (on the meta device), and by logits that stay the same.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from luthier.core.contracts import NothingPatched
from luthier.core.errors import ModelError
from luthier.core.profile import ArchitectureProfile
from luthier.core.saving import quiet
from luthier.core.scoring import score_modules
from luthier.plugins.llama_pro.layout import OUTPUTS, layer_targets, templates

if TYPE_CHECKING:
    from torch import Tensor

SCALARS: Final = (bool, int, float, str, type(None))
# Which tokens does not matter; long enough for every layer to attend to something.
PROBE_TOKENS: Final = 8
# A float32 or bfloat16 sum that a GPU takes in another order differs less.
TOLERANCE: Final = 1e-2


def expand(model: nn.Module, profile: ArchitectureProfile, blocks: int) -> nn.Module:
    """The same model with `blocks` more decoder layers, which alone train; a score head beside them.

    Raises NothingPatched where the decoder is not as its profile says, ModelError where the grown model would not be what
    transformers builds from its configuration, or where its logits changed.
    """
    layers = _decoder(model, profile)
    sources = templates(len(layers), blocks)
    with torch.no_grad():
        before, _ = _probe(model, ())
        _grow_config(model, profile.decoder, sources)
        new = _insert(model, profile, layers, sources)
        _renumber(model, profile, sources)
        for layer, source in new.items():
            _silence_outputs(layer, profile, source)
        norms = {layer: _norms(layer, profile, source) for layer, source in new.items()}
        _, blind = _probe(model, [norm for own in norms.values() for norm in own])
        for layer, source in new.items():
            ends = [norm for norm in norms[layer] if norm in blind]
            if ends:
                _silence_norms(layer, layers[source], profile, source, ends)
        after, _ = _probe(model, ())
    change, greatest = float((after - before).abs().max()), float(before.abs().max())
    if not change <= TOLERANCE * greatest:
        raise _misfit(profile, f"with the new layers, which should add nothing, its logits differ by {change:.2g}")
    model.requires_grad_(False)
    for trained in (*new, *map(model.get_submodule, score_modules(profile))):
        trained.requires_grad_(True)
    return model


def _decoder(model: nn.Module, profile: ArchitectureProfile) -> list[nn.Module]:
    try:
        found = model.get_submodule(profile.decoder)
    except AttributeError:
        found = None
    if not isinstance(found, nn.ModuleList) or len(found) != profile.layers:
        raise NothingPatched(f"llama_pro: the loaded model has no list of {profile.layers} layers at {profile.decoder}")
    return list(found)


def _misfit(profile: ArchitectureProfile, reason: str) -> ModelError:
    return ModelError(
        f"{profile.model_type} cannot be given more layers: {reason}", where="adapter: llama_pro", fix="take `freeze`"
    )


# ---- the configuration


def _grow_config(model: nn.Module, decoder: str, sources: tuple[int, ...]) -> None:
    """More layers in each configuration that the decoder, its owners or its layers hold; so in each list by layer."""
    count = sum(1 for _ in model.get_submodule(decoder).children())
    configs: dict[int, Any] = {}
    for name, module in model.named_modules():
        around = not name or f"{decoder}.".startswith(f"{name}.") or name.startswith(f"{decoder}.")
        if around and hasattr(module, "config"):
            configs[id(module.config)] = module.config
    for config in configs.values():
        if getattr(config, "num_hidden_layers", None) != count:
            continue
        config.num_hidden_layers = count + len(sources)
        for key, value in list(vars(config).items()):
            if isinstance(value, list | tuple) and len(value) == count and "layer" in key:
                setattr(config, key, type(value)(_with_copies(value, sources)))


def _with_copies(values: Any, sources: tuple[int, ...]) -> list[Any]:
    grown = []
    for place, value in enumerate(values):
        grown += [value, value] if place in sources else [value]
    return grown


# ---- the layers


def _insert(
    model: nn.Module, profile: ArchitectureProfile, layers: list[nn.Module], sources: tuple[int, ...]
) -> dict[nn.Module, int]:
    """Put the copies into the decoder; returns them with the old number of the layer that each was copied from."""
    grown: list[nn.Module] = []
    new: dict[nn.Module, int] = {}
    for number, layer in enumerate(layers):
        grown.append(layer)
        if number in sources:
            grown.append(_copied(layer))
            new[grown[-1]] = number
    owner, _, leaf = profile.decoder.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.ModuleList(grown))
    return new


def _copied(layer: nn.Module) -> nn.Module:
    """A layer of its own that goes by the same configuration: what is set there later holds for it too."""
    shared = [module.config for module in layer.modules() if hasattr(module, "config")]
    return copy.deepcopy(layer, {id(config): config for config in shared})


def _renumber(model: Any, profile: ArchitectureProfile, sources: tuple[int, ...]) -> None:
    """Take over from a model built anew what a module knows of its own place; any other difference is an error."""
    with quiet(), torch.device("meta"):
        fresh = type(model)(copy.deepcopy(model.config))
    own, built = ({name: tuple(t.shape) for name, t in one.state_dict().items()} for one in (model, fresh))
    odd = sorted(name for name in own.keys() | built.keys() if own.get(name) != built.get(name))
    if odd:
        raise _misfit(profile, f"built anew with as many layers, {odd[0]} is {built.get(odd[0])} and not {own.get(odd[0])}")
    old_numbers = _with_copies(range(profile.layers), sources)
    theirs = dict(fresh.named_modules())
    for name, module in model.named_modules():
        number = _layer_number(name, profile.decoder)
        numbers = {(profile.layers, profile.layers + len(sources))}
        if number is not None:
            numbers.add((old_numbers[number], number))
        for key, value in _scalars(theirs[name]).items():
            mine = vars(module).get(key, value)
            if mine == value:
                continue
            if type(value) is not int or (mine, value) not in numbers:
                raise _misfit(profile, f"built anew with as many layers, {name}.{key} is {value!r} and not {mine!r}")
            setattr(module, key, value)


def _layer_number(name: str, decoder: str) -> int | None:
    if not name.startswith(f"{decoder}."):
        return None
    return int(name[len(decoder) + 1 :].partition(".")[0])


def _scalars(module: nn.Module) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, SCALARS) and not key.startswith("_") and key not in ("training", "gradient_checkpointing")
    }


# ---- silence


def _silence_outputs(layer: nn.Module, profile: ArchitectureProfile, source: int) -> None:
    """Weights and biases of the output projections become zero."""
    for parameter in _outputs(layer, profile, source).values():
        parameter.zero_()


def _outputs(layer: nn.Module, profile: ArchitectureProfile, source: int) -> dict[str, nn.Parameter]:
    """Every parameter of the output projections by its name within the layer."""
    prefix = f"{profile.decoder}.{source}."
    places = [target.name.removeprefix(prefix) for target in layer_targets(profile, source) if target.role in OUTPUTS]
    return {
        name: parameter
        for name, parameter in layer.named_parameters()
        # A module's own, or a bare parameter of experts and the bias beside it.
        if any(name.startswith((f"{place}.", f"{place}_bias")) or name == place for place in places)
    }


def _norms(layer: nn.Module, profile: ArchitectureProfile, source: int) -> list[nn.Module]:
    prefix = f"{profile.decoder}.{source}."
    names = [target.name.removeprefix(prefix) for target in layer_targets(profile, source) if target.role == "norm"]
    return [layer.get_submodule(name) for name in names]


def _silence_norms(
    layer: nn.Module, original: nn.Module, profile: ArchitectureProfile, source: int, ends: list[nn.Module]
) -> None:
    """For layers that normalise what attention and MLP put out: the gain is what has to be zero.

    A norm gives the smallest input its full length. Behind zero projections it would pass on gradients a thousand times
    too big (1 / sqrt(eps)), and after one step the new layer would add at full strength what it has not learned.
    """
    for name, parameter in _outputs(layer, profile, source).items():
        parameter.copy_(original.get_parameter(name))
    for norm in ends:
        weights = dict(norm.named_parameters())
        if "weight" not in weights:
            raise _misfit(profile, f"the {type(norm).__name__} at the end of its layers has no gain that could be zero")
        if "bias" in weights:
            weights["bias"].zero_()
        # Some norms (Gemma's) multiply by 1 + weight.
        for gain in (0.0, -1.0):
            weights["weight"].fill_(gain)
            probe = torch.arange(1, weights["weight"].numel() + 1).to(weights["weight"])
            if not norm(probe).any():
                break
        else:
            raise _misfit(profile, f"the {type(norm).__name__} at the end of its layers cannot be silenced")


def _probe(model: Any, watched: Any) -> tuple[Tensor, set[nn.Module]]:
    """Logits of a few tokens in evaluation mode, and those of the `watched` modules whose input was all zero."""
    blind: set[nn.Module] = set()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].any():
            blind.add(module)

    hooks = [module.register_forward_pre_hook(note) for module in watched]
    ids = torch.arange(PROBE_TOKENS, device=model.device).remainder(model.config.get_text_config().vocab_size)[None]
    training = model.training
    model.eval()
    try:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return logits, blind
