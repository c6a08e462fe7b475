"""Names that settings choose from. Without pydantic, so that the help of the command line can list them quickly."""

from typing import Literal

StrategyName = Literal["auto", "head", "few-shot", "lp-ft", "full", "partial", "differential", "gradual", "distill", "scratch"]
"""Each is implemented by a function in `pipeline.training.train.STRATEGIES`."""
AugmentationName = Literal["none", "light", "flip", "strong", "rotate"]
"""Each is implemented by an entry of `pipeline.training.augment.AUGMENTATIONS`."""
LayoutName = Literal["auto", "top", "leaf", "splits", "csv"]
"""How the folders of a data set are read; see `pipeline.sources.layout`."""
OUTPUT_MARKER = ".edgeline"
"""File in every folder of artifacts, so that what edgeline writes is never read as data."""
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
