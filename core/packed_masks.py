"""Whether transformers' own attention keeps the documents of a packed sequence apart, for one class of models.

transformers finds the documents where `position_ids` start anew (`find_packed_sequence_indices` in masking_utils.py), and
then masks them from each other, for `eager`, `sdpa` and every kernel that takes a mask. That needs this of the
model, and all of it can be read in its source and profile, before a weight is loaded:

    forward(..., position_ids=...)                         positions can be given at all
    create_causal_mask(..., position_ids=position_ids)     ... and every function that makes a mask is given them
    no attention that chooses its keys by itself           a choice over the whole sequence takes keys of other documents
    no module that detection did not understand            a byte-level model with more stacks of layers (BLT) mixes them

Positions that a model computes from the attention mask (OPT), adds to the scores as a bias (ALiBi) or does not hand on fail
the first two. What carries a state along the sequence has the trait "model.recurrent" and is refused for that.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from luthier.core.contracts import Declaration
from luthier.core.frozen import FrozenDict
from luthier.core.profile import ArchitectureProfile

PACKED: Final = "attention.packed"
POSITIONS: Final = "position_ids"
MASK_FUNCTIONS: Final = frozenset(
    {"create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask", "create_masks_for_generate"}
)


def packed_by_mask(profile: ArchitectureProfile) -> Declaration:
    """What a kernel declares that computes with the mask which transformers makes: "attention.packed", or why not."""
    reason = why_documents_mix(profile)
    if reason:
        return Declaration(reasons=FrozenDict({PACKED: reason}))
    return Declaration(provides=frozenset({PACKED}))


def why_documents_mix(profile: ArchitectureProfile) -> str:
    """The reason for which documents of one sequence would see each other; empty where they are kept apart.

    Empty too for a model whose code comes with it, because that is not imported for a plan: the check before the first step
    (core/language_modeling.py) finds out.
    """
    if profile.remote_code:
        return ""
    if profile.has("attn.index"):
        return "its sparse attention chooses keys over the whole sequence, other documents included"
    if profile.unclassified:
        return f"it is not known what {profile.unclassified[0].module} does along the sequence"
    return _read(profile.architecture)


@cache
def _read(architecture: str) -> str:
    import transformers

    cls = getattr(transformers, architecture, None)
    if cls is None:
        return f"transformers has no class {architecture} in which to look how it makes its mask"
    if POSITIONS not in inspect.signature(cls.forward).parameters:
        return f"the forward of transformers' {architecture} takes no {POSITIONS}, which say where a document begins"
    return _masks_without_positions(inspect.getsource(inspect.getmodule(cls) or cls), architecture)


def _masks_without_positions(source: str, architecture: str) -> str:
    """What in the source of a model's module keeps positions from the functions that make masks."""
    found = False
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for call in _mask_calls(function):
                found = True
                if not _given_positions(call, function):
                    return f"transformers' {architecture} makes its attention mask without {POSITIONS}"
    return "" if found else f"transformers' {architecture} does not make its mask with transformers' own functions"


def _mask_calls(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """Calls of a mask function, or of a variable that stands for one of several."""
    names = {name for name, value in _assigned(function) if any(map(_is_mask_function, ast.walk(value)))}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and (_is_mask_function(node.func) or _name(node.func) in names):
            yield node


def _is_mask_function(node: ast.AST) -> bool:
    return _name(node) in MASK_FUNCTIONS


def _given_positions(call: ast.Call, function: ast.FunctionDef) -> bool:
    return any(
        keyword.arg == POSITIONS or (keyword.arg is None and _holds_positions(keyword.value, function))
        for keyword in call.keywords
    )


def _holds_positions(node: ast.AST, function: ast.FunctionDef) -> bool:
    """Whether a mapping has positions: a literal, `dict(...)`, a copy, or a variable that was assigned one of these."""
    if isinstance(node, ast.Name):
        return any(name == node.id and _holds_positions(value, function) for name, value in _assigned(function))
    if isinstance(node, ast.Dict):
        keys_and_values = zip(node.keys, node.values, strict=True)
        return any(
            _holds_positions(value, function) if key is None else isinstance(key, ast.Constant) and key.value == POSITIONS
            for key, value in keys_and_values
        )
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "copy":
            return _holds_positions(node.func.value, function)
        return _given_positions(node, function) or any(_holds_positions(one, function) for one in node.args)
    return False


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[str, Any]]:
    """(variable, expression) of every assignment in the function, except of what a call of a mask function returned."""
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and value is not None and not _makes_mask(value):
                yield target.id, value


def _makes_mask(value: ast.AST) -> bool:
    return any(isinstance(node, ast.Call) and _is_mask_function(node.func) for node in ast.walk(value))


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""
