"""`luthier profile MODEL`: the architecture as a tree of roles, sizes and traits, read from the configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from luthier.cli.text import output_console, parameters, print_json
from luthier.core.profile import ROLES, ArchitectureProfile, AttentionGroup, Quantization, RoleGroup
from luthier.core.serial import to_plain

if TYPE_CHECKING:
    from rich.tree import Tree

SECTIONS: Final = {
    "embed": "embeddings and head",
    "head": "embeddings and head",
    "attn": "attention",
    "cross": "cross-attention",
    "mlp": "MLP",
    "mixer": "mixer",
    "residual": "residual stream",
    "adapter": "built-in adapters",
    "norm": "norms",
}
"""First word of a role to the branch of the tree that it stands in, in the order of the branches."""


def run(model: str, *, as_json: bool, trust_remote_code: bool = False) -> int:
    """Print the profile of a model: a folder, a hub id, a .gguf file or an alias. Returns the exit code."""
    from luthier.api import read_model
    from luthier.core.config import ModelConfig
    from luthier.registry.catalog import discover

    _, profile = read_model(ModelConfig(name=model, trust_remote_code=trust_remote_code), discover())
    if as_json:
        print_json(to_plain(profile))
    else:
        console = output_console()
        if not console.is_terminal:
            console.width = 200  # a line of a file or a pipe is not cut
        console.print(tree(profile))
    return 0


def tree(profile: ArchitectureProfile) -> Tree:
    """The profile as a rich tree."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text.assemble((profile.model_type, "bold"), f"  {profile.architecture}"))
    for line in _summary(profile):
        root.add(Text(line))
    if profile.attention:
        branch = root.add(Text("attention by layer", style="bold"))
        forms = [(attention_words(group), group) for group in profile.attention]
        width = max(len(words) for words, _ in forms)
        for words, group in forms:
            where = f"{'layer' if len(group.layers) == 1 else 'layers'} {ranges(group.layers)}"
            branch.add(Text(f"{words:{width}}  {where}"))
    _add_roles(root, profile)
    if profile.traits:
        root.add(Text.assemble(("traits  ", "bold"), ", ".join(sorted(profile.traits))))
    if profile.towers:
        branch = root.add(Text("other parts, not classified", style="bold"))
        for tower in profile.towers:
            branch.add(Text(f"{tower.module}  {tower.architecture}  {parameters(tower.parameters)}"))
    if profile.unclassified:
        branch = root.add(Text(f"not understood: {len(profile.unclassified)}", style="bold red"))
        for item in profile.unclassified:
            branch.add(Text(f"{item.module}: {item.why}"))
    return root


def _summary(profile: ArchitectureProfile) -> Iterator[str]:
    classes = ", ".join(profile.layer_classes)
    yield f"{parameters(profile.parameters)} parameters in {profile.layers} layers at {profile.decoder} ({classes})"
    sizes = [f"hidden {profile.hidden_size}", f"vocabulary {profile.vocab_size}"]
    if profile.intermediate_size:
        sizes.insert(1, f"intermediate {profile.intermediate_size}")
    if profile.context_length:
        sizes.append(f"context {profile.context_length} tokens")
    if profile.tied_embeddings:
        sizes.append("embeddings tied to the head")
    yield ", ".join(sizes)
    if profile.experts:
        chosen = f", {profile.experts_per_token} for each token" if profile.experts_per_token else ""
        yield f"{profile.experts} experts{chosen}"
    positions = f"rotary positions: {profile.rope}" if profile.rope else "no rotary positions"
    if profile.rope and profile.rope_theta:
        positions += f", base {profile.rope_theta:g}"
    yield positions + (f"; logits capped at {profile.final_softcap:g}" if profile.final_softcap else "")
    stored = f"checkpoint in {profile.dtype or 'an unstated dtype'}"
    if profile.quantization:
        bits = f", {profile.quantization.bits:g} bits" if profile.quantization.bits else ""
        stored += f", quantised ({profile.quantization.method}{bits})"
    checkpointing = "gradient checkpointing" if profile.gradient_checkpointing else "no gradient checkpointing"
    yield f"{stored}; attention backends {', '.join(profile.backends)}; {checkpointing}"
    if profile.quantization:
        yield _quantised(profile.quantization)
    if profile.remote_code:
        yield "runs code from the model's own repository"


def _quantised(quantization: Quantization) -> str:
    """What the stored weights allow, in one line."""
    needs = [*quantization.packages, *(["a CUDA device"] if quantization.cuda else [])]
    words = "adapters train on the quantised weights" + (f", which needs {', '.join(needs)}" if needs else "")
    if quantization.untrainable:
        words = f"the quantised weights cannot be trained on as they are stored: {quantization.untrainable}"
    return words + ("; they can be loaded as plain weights" if quantization.dequantize else "")


def attention_words(group: AttentionGroup) -> str:
    """One form of attention in words: kind, heads, window."""
    if group.kind == "none":
        return "no attention"
    words: list[str] = ["linear attention" if group.kind == "linear" else group.kind]
    if group.heads:
        shared = "" if group.heads == group.kv_heads else f" on {group.kv_heads} key-value heads"
        sizes = f"{group.head_dim}" if group.value_dim == group.head_dim else f"{group.head_dim} (values {group.value_dim})"
        words.append(f"{group.heads} heads of {sizes}{shared}")
    if group.sliding_window:
        words.append(f"window {group.sliding_window}")
    if group.chunk_size:
        words.append(f"chunks of {group.chunk_size}")
    if group.softcap:
        words.append(f"scores capped at {group.softcap:g}")
    return ", ".join(words)


def ranges(numbers: Iterable[int]) -> str:
    """0-3, 7; and `every 2nd from 1 to 31` where the numbers are evenly spaced."""
    ordered = sorted(numbers)
    steps = {after - before for before, after in pairwise(ordered)}
    if len(ordered) > 2 and len(steps) == 1 and (step := steps.pop()) > 1:
        ordinal = {2: "2nd", 3: "3rd"}.get(step, f"{step}th")
        return f"every {ordinal} from {ordered[0]} to {ordered[-1]}"
    spans: list[list[int]] = []
    for number in ordered:
        if spans and spans[-1][-1] == number - 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    words = [f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans]
    return ", ".join(words) if len(words) <= 8 else f"{', '.join(words[:7])}, ... ({len(ordered)} layers)"


def _add_roles(root: Tree, profile: ArchitectureProfile) -> None:
    """One branch for each section, one aligned line for each pattern, with its share of all parameters."""
    from rich.text import Text

    lines = [(role, group, _columns(role, group, profile)) for role in profile.roles for group in profile.roles[role]]
    widths = [max((len(columns[i]) for _, _, columns in lines), default=0) for i in range(5)]
    branches: dict[str, Any] = {}
    for section in dict.fromkeys(SECTIONS.values()):
        members = [role for role in (*ROLES, *profile.roles) if _section(role) == section and role in profile.roles]
        if not members:
            continue
        total = sum(profile.role_parameters.get(role, 0) for role in dict.fromkeys(members))
        share = f"  {parameters(total)}, {100 * total / max(profile.parameters, 1):.1f}%"
        branches[section] = root.add(Text.assemble((section, "bold"), share))
    for role, _, columns in lines:
        pattern, sizes, count, each, notes = (text.ljust(width) for text, width in zip(columns, widths, strict=True))
        text = Text.assemble((f"{role:20} ", "cyan"), f"{pattern}  {sizes}  {count}  {each}  {notes}".rstrip())
        branches[_section(role)].add(text)
    rest = {name: profile.role_parameters[name] for name in ("other", "unclassified") if name in profile.role_parameters}
    for name, number in rest.items():
        meaning = "vectors without a role" if name == "other" else "weights that were not understood"
        root.add(Text.assemble((meaning, "bold"), f"  {parameters(number)}"))


def _section(role: str) -> str:
    return SECTIONS.get(role.partition(".")[0], "norms")


def _columns(role: str, group: RoleGroup, profile: ArchitectureProfile) -> tuple[str, str, str, str, str]:
    """Pattern, sizes, how many, parameters of all, remarks."""
    if group.kind == "norm":
        sizes = f"{group.shape[0]}" if group.shape else "no weight"
    elif group.in_features is None or group.out_features is None:
        sizes = " x ".join(map(str, group.shape))
    else:
        sizes = f"{group.in_features} -> {group.out_features}"
    count = f"x{group.count}"
    notes = []
    if group.experts and group.kind == "parameter":
        notes.append(f"{group.experts} experts in one parameter")
    elif group.experts:
        notes.append(f"{group.experts} experts a layer")
    elif group.kind not in ("linear", "norm", "embedding"):
        notes.append({"conv1d": "Conv1D", "parameter": "parameter", "other": "convolution"}[group.kind])
    if group.bias:
        notes.append("bias")
    if group.layers and len(group.layers) < profile.layers:
        words = ranges(group.layers)
        notes.append(f"layers {words}" if words.count(",") < 2 else f"{len(group.layers)} of {profile.layers} layers")
    if role == "head" and profile.tied_embeddings:
        notes.append("tied")
    return group.pattern, sizes, count, parameters(group.parameters * group.count), ", ".join(notes)
