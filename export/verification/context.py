"""What one verification compares: a network in PyTorch, its ONNX file, and the images that both see.

PyTorch's outputs are computed once, when the first check needs them. The features of a frozen backbone are found in the cache
that `evaluate` has filled, by the pixels and the digest of the backbone.

Shapes: N images, H x W the model's input, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeline.export.converters.environments import FOLDER
from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.compare import Outputs, in_batches, run_session
from edgeline.export.verification.explanations import ExpectedMaps, expected_maps
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.samples import ADMITTED, Sample, map_ahead, read_pixels
from edgeline.pipeline.data.stress_images import stress_images
from edgeline.pipeline.models.devices import CPU_BATCH, choose_device
from edgeline.pipeline.models.frozen_features import FrozenBackbone
from edgeline.pipeline.progress import track
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.session import create_session


@dataclass(frozen=True)
class Findings:
    """Result of one check."""

    problems: Sequence[str] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the report."""


@dataclass(frozen=True, kw_only=True)
class VerificationContext:
    """What is verified, against what, and at which thresholds."""

    deployed: CalibratedModel
    """The network with its temperature; evaluation mode is set here."""
    model: bytes
    """The float32 ONNX file."""
    spec: PreprocessSpec
    """The preprocessing of both."""
    samples: Sequence[Sample]
    """Held-out images. They are compared in addition to the stress images."""
    config: VerifyConfig
    """Batch sizes and thresholds."""
    opset: int | None = None
    """The newest operator set that a file may use; any where None."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The origin that a file must state in its metadata."""
    explain: bool = False
    """Whether the files must have class activation maps and embeddings as outputs."""
    preprocessing_fingerprint: Path | None = None
    """The stress images' pixels at training time; checked if given."""
    environments: Path = FOLDER
    """Where the runtimes of other formats are installed."""
    features: ContentCache | None = None
    """Where the features of a frozen backbone are cached; None computes them."""

    @property
    def names(self) -> list[str]:
        """Of the images, the stress images first."""
        return [*(f"stress:{name}" for name in stress_images()), *(sample.name for sample in self.samples)]

    @property
    def pixels(self) -> list[np.ndarray]:
        """Of each image, uint8 (H, W, 3)."""
        return self._run[1]

    @property
    def expected(self) -> Outputs:
        """PyTorch's outputs for the images."""
        return self._run[0]

    @property
    def classes(self) -> int:
        """K."""
        return self.deployed.network.classifier.out_features

    @property
    def labeled(self) -> list[tuple[int, int]]:
        """Position and true class of the images that count for accuracy: those of the test split."""
        first = len(stress_images())
        return [(first + position, s.index) for position, s in enumerate(self.samples) if s.split == "test"]

    @property
    def timed_image(self) -> bytes:
        """An image file's bytes, to measure times with."""
        return stress_images()["scene"]

    @cached_property
    def session(self) -> Any:
        """The ONNX file, loaded as it ships."""
        return create_session(self.model)

    @cached_property
    def by_batch(self) -> dict[int, Outputs]:
        """The ONNX file's outputs for all images, by batch size."""
        batches = (1, self.config.odd_batch, self.config.max_batch)
        return {batch: run_session(self.session, self.pixels, batch) for batch in batches}

    @property
    def outputs(self) -> Outputs:
        """The ONNX file's outputs for all images, at the largest batch."""
        return self.by_batch[self.config.max_batch]

    @cached_property
    def expected_maps(self) -> ExpectedMaps | None:
        """PyTorch's class activation maps for the first images, if the files must have them."""
        if not self.explain:
            return None
        return expected_maps(self.deployed.network, self.deployed.temperature, self.pixels)

    @cached_property
    def _run(self) -> tuple[Outputs, list[np.ndarray]]:
        return run_pytorch(self.deployed, self.spec, self.samples, self.features)

    def metadata_mismatches(self, found: Mapping[str, str], command: str) -> list[str]:
        """Problems of a file that states another origin than this run.

        Args:
            found: the file's metadata.
            command: what to do about it.
        """
        return [
            f"the file's metadata has {key} = {found.get(key)!r}, this run has {value!r}; {command}"
            for key, value in self.metadata.items()
            if found.get(key) != value
        ]


def run_pytorch(
    deployed: CalibratedModel, spec: PreprocessSpec, samples: Sequence[Sample], cache: ContentCache | None = None
) -> tuple[Outputs, list[np.ndarray]]:
    """Preprocess the stress images and the samples, and run PyTorch on them.

    Args:
        deployed: the network with its temperature; evaluation mode is set here.
        spec: its preprocessing.
        samples: the held-out images.
        cache: of the backbone's features. Those of these very pixels are reused; everything after them is computed.

    Returns:
        Its outputs, and each image's pixels, uint8 (H, W, 3).
    """
    deployed.eval()
    classify = deployed if cache is None else _with_cached_features(deployed, cache)
    pixels = [preprocess(data, spec, ADMITTED) for data in stress_images().values()]
    pixels += map_ahead(lambda sample: read_pixels(sample, spec), samples, ahead=64)
    rows = []
    batches = track(in_batches(pixels, CPU_BATCH), "verifying: PyTorch", len(pixels), step=CPU_BATCH)
    with torch.inference_mode():
        for batch_NHW3 in batches:
            rows.append([output.numpy() for output in classify(torch.from_numpy(batch_NHW3))])
    return Outputs.join(rows), pixels


def _with_cached_features(
    deployed: CalibratedModel, cache: ContentCache
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    backbone = FrozenBackbone(deployed.network, choose_device("cpu"), cache)
    return lambda pixels_NHW3: deployed.classify(backbone.features(pixels_NHW3))
