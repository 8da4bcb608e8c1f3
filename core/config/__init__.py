"""What the user writes, strictly read: YAML and `key=value` become a RunConfig or a list of problems."""

from luthier.core.config.load import apply_overrides, load_config, parse_config
from luthier.core.config.schema import Choice, DataConfig, ModelConfig, RunConfig, SourceConfig, TrainConfig

__all__ = [
    "Choice", "DataConfig", "ModelConfig", "RunConfig", "SourceConfig", "TrainConfig",
    "apply_overrides", "load_config", "parse_config",
]  # fmt: skip
