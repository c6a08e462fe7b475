"""One image in the scheduler, and the answer to it.

Shapes: K classes, H x W the model's input, C the embedding's size, h x w the map's. Arrays carry them as a suffix.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeline.serve.classifier import Classifier
from edgeline.serve.explain import Region


@dataclass(slots=True, kw_only=True)
class Answer:
    """The model's outputs for one image, and how long each stage took."""

    probabilities_K: np.ndarray
    logits_K: np.ndarray
    queue_s: float
    decode_s: float
    infer_s: float
    batch: int
    """Images in the same run of the model."""
    first: bool
    """Whether it is the first image of its run, so that each run is counted once."""
    pixels_HW3: np.ndarray
    embedding_C: np.ndarray | None = None
    """Only of an artifact with explanations."""
    evidence_Khw: np.ndarray | None = None
    """Class activation maps, if requested."""
    region: Region | None = None
    """The part of an encoded image that the model saw, if class activation maps were requested."""


@dataclass(eq=False, slots=True)
class Job:
    """One image on its way through the scheduler. Times are `time.monotonic`."""

    classifier: Classifier
    item: bytes | np.ndarray
    """An encoded image, or uint8 (H, W, 3) pixels of the model's resolution."""
    loop: asyncio.AbstractEventLoop
    done: Callable[[Answer | Exception], None]
    """Called once, on that loop; never for a cancelled job."""
    queued_at: float
    deadline: float
    explain: bool = False
    """Whether class activation maps are requested."""
    started_at: float | None = None
    """None while it is queued."""
    decode_s: float = 0.0
    region: Region | None = None
    cancelled: bool = False
    outcome: Answer | Exception | None = None
