"""What a third party writes to test its methods: `python -m pytest contracts.py`."""

from luthier.core.testing import AdapterContract, OptimizerContract


class TestIa3(AdapterContract):
    method = "ia3"


class TestSignedMomentum(OptimizerContract):
    method = "signed_momentum"
    kinds = ("llama",)
    options = ({}, {"weight_decay": 0.1})
