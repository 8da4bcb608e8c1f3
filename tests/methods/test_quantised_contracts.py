"""nf4, fp4 and int8 keep what the contract of a model patch promises, on every kind of model."""

from __future__ import annotations

from luthier.core.testing import ModelPatchContract


class TestNf4(ModelPatchContract):
    method = "nf4"


class TestFp4(ModelPatchContract):
    method = "fp4"


class TestInt8(ModelPatchContract):
    method = "int8"
