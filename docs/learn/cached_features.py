"""The features of a folder of photos, as the strategy `head` computes and caches them."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.prepare import prepare
from edgeline.pipeline.data.samples import read_prepared
from edgeline.pipeline.models.backbones import build
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.training.features import FeatureExtractor


def read_features(data: str, artifacts: str) -> tuple[Tensor, np.ndarray]:
    """Return the features (N, D) of all images in a folder and their class indices (N,), computing only what is not cached."""
    run, _ = prepare(load_config(data=data, artifacts=artifacts))
    prepared = read_prepared(run.step("prepare"))
    network, spec = build("efficientnet_lite0", "imagenet", classes=len(prepared.labels))
    extractor = FeatureExtractor(network, spec, ContentCache(run.config.cache / "features.sqlite"), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        table_ND = np.array(extractor.compute(prepared.samples, Path(folder, "features.npy")))
    return torch.from_numpy(table_ND), np.array([sample.index for sample in prepared.samples])
