"""Architecture detection: from a configuration, a folder, a hub id or a built model to an `ArchitectureProfile`.

    source --build--> model on the meta device --weights--> every matrix and norm
        --stack--> which layers are the text decoder, what are other towers
        --context--> attention, mixer, experts, MLP, ... by structure
        --roles--> a role for each matrix, by its name within that context, then checked by shapes (attention, mlp)
        --assemble--> the profile; what got no role is named in `unclassified`

Structure is asked first (containers, recurrence markers, shapes, what the class itself records), names second, data from
plugins (`ArchitectureFamily`) before both. A role is never given on a name alone where the shapes contradict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from luthier.core.extensions import ArchitectureFamily
    from luthier.core.profile import ArchitectureProfile

__all__ = ["detect"]


def detect(
    source: PreTrainedConfig | PreTrainedModel | str | Path,
    *,
    families: Sequence[ArchitectureFamily] = (),
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    revision: str | None = None,
) -> ArchitectureProfile:
    """The profile of a causal language model; no weight is read, remote code runs only with `trust_remote_code`.

    `source` is a configuration, a model (on the meta device or real), a folder, or a hub id. `families` come before what
    detection would find by itself. Raises ModelError when the source cannot be read or is no causal language model,
    MissingEnvironmentError when a hub id cannot be reached.
    """
    from luthier.registry.detect.assemble import profile_of
    from luthier.registry.detect.build import meta_model

    built = meta_model(source, trust_remote_code=trust_remote_code, gguf_file=gguf_file, revision=revision)
    return profile_of(built.model, families=families, remote_code=built.remote_code)
