"""Names that settings choose from. Without pydantic, so that the help of the command line can list them quickly."""

from typing import Literal

StrategyName = Literal["head", "full", "differential", "gradual"]
"""Each is implemented by a function in `pipeline.training.train.STRATEGIES`."""
AugmentationName = Literal["none", "light", "flip"]
"""Each is implemented by an entry of `pipeline.training.augment.AUGMENTATIONS`."""
