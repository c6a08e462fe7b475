"""Fixtures for trainings of layers."""

from pathlib import Path

import pytest

from edgeline.pipeline.data.samples import Prepared
from edgeline.pipeline.training.train import STRATEGIES as FIT
from tests.support.layer_training import Fitted, context


@pytest.fixture(name="fitted")
def fit_on_shapes(shapes: Prepared, tmp_path: Path) -> Fitted:
    """`fitted(network, config, **changes)`: the result of training it on the shapes, in the test's folder."""
    return lambda network, config, **changes: FIT[config.strategy](context(network, shapes, config, tmp_path, **changes))
