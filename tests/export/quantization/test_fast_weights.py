"""Quantizing whole weights gives the bytes of ONNX Runtime's own quantizer."""

import numpy as np
import pytest

from edgeline.export.quantization import static_int8
from edgeline.export.quantization.static_int8 import Recipe, input_means, make_ready, measure_ranges, quantize
from tests.support.small_graphs import IMAGENET, SIZE, convolutional

RECIPES = (
    Recipe(),
    Recipe(correct_bias=True, reduce_range=True),
    Recipe(per_channel=False),
    Recipe(activations="int8"),
    Recipe(weights="uint8"),
    Recipe(exclude=("conv1", "m")),
)


def test_every_recipe_writes_the_bytes_of_onnx_runtimes_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ready = make_ready(convolutional(*IMAGENET, layers=3))
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    ranges, means = measure_ranges(ready, [pixels_NHW3]), input_means(ready, [pixels_NHW3])
    fast = {recipe.name: quantize(ready, ranges, recipe, means) for recipe in RECIPES}
    monkeypatch.setattr(static_int8, "fast_quantizer", lambda: QDQQuantizer)
    assert fast == {recipe.name: quantize(ready, ranges, recipe, means) for recipe in RECIPES}
    assert len(set(fast.values())) == len(RECIPES)
