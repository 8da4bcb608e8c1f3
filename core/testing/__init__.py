"""The contract kit: what every method promises by being one, as pytest classes for its author to subclass.

    from luthier.core.testing import AdapterContract

    class TestIa3(AdapterContract):
        method = "ia3"
        options = ({}, {"target": ["attn"]})

Each check runs on every kind of model (a random one of two layers, built here) with every set of options. A method that says
`no` to one of them has to say why; that is checked in place of the rest.

    AdapterContract          which parameters train, their gradients, saving, loading, merging, switching off
    OptimizerContract        rate, schedule, decay, clipping, state that resumes bit for bit, bytes
    ModelPatchContract       what is patched, what comes back, and that the numbers are as declared
    AttentionKernelContract  equal to plain attention, causal, with padding, gradients and generation
    TrainingStageContract    a whole small run: loss, what moved, stop and resume
    DataFormatContract       rows that are recognised, what they become, and errors that name the column
"""

from __future__ import annotations

try:
    import pytest
except ImportError as error:
    raise ImportError("luthier.core.testing is a kit of pytest classes and needs pytest: pip install pytest") from error

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in ("adapters", "attention", "contract", "formats", "optimizers", "patches", "stages")
    )
)

from luthier.core.testing.adapters import AdapterContract  # noqa: E402
from luthier.core.testing.attention import AttentionKernelContract  # noqa: E402
from luthier.core.testing.contract import Case, Contract  # noqa: E402
from luthier.core.testing.formats import DataFormatContract  # noqa: E402
from luthier.core.testing.models import KINDS, TinyModel, tiny_model, tiny_tokenizer  # noqa: E402
from luthier.core.testing.optimizers import OptimizerContract  # noqa: E402
from luthier.core.testing.patches import ModelPatchContract  # noqa: E402
from luthier.core.testing.stages import TrainingStageContract  # noqa: E402

__all__ = [
    "KINDS",
    "AdapterContract",
    "AttentionKernelContract",
    "Case",
    "Contract",
    "DataFormatContract",
    "ModelPatchContract",
    "OptimizerContract",
    "TinyModel",
    "TrainingStageContract",
    "tiny_model",
    "tiny_tokenizer",
]
