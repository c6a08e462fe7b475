"""A head that is attached to a stored graph gives the bytes of an export, or none."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeline.export.graph import to_onnx
from edgeline.export.graph.to_onnx import CalibratedModel, GraphOptions, export
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.pretrained import Normalization
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.serve.preprocess import PreprocessSpec

SPEC = PreprocessSpec(height=16, width=16)
FEATURES = 4
Export = Callable[..., bytes]


def fill(layer: nn.Module, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance))


class Backbone(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, FEATURES, 3)
        fill(self.conv, seed)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 1).flatten(1)


def network(classes: int, seed: int = 1, *, backbone: int = 0) -> CalibratedModel:
    """A network with a backbone, and with a head of its own."""
    made = Network(Backbone(backbone), FEATURES, classes, 0.0, Normalization((127.0,) * 3, (128.0,) * 3))
    fill(made.classifier, seed)
    return CalibratedModel(made.eval(), 0.5 + seed / 8)


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "graphs.sqlite")


@pytest.fixture
def exported(tmp_path: Path) -> Export:
    def run(deployed: CalibratedModel, cache: ContentCache | None = None) -> bytes:
        path = tmp_path / "model.onnx"
        options = GraphOptions(classes=deployed.network.classifier.out_features, opset=18, metadata={"edgeline.model": "own"})
        export(deployed, SPEC, path, options, cache)
        return path.read_bytes()

    return run


@pytest.fixture
def no_exporter(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def fail(*_: object) -> None:
        raise AssertionError("the network was exported again")

    return lambda: monkeypatch.setattr(to_onnx, "_convert", fail)


@pytest.mark.long
def test_a_new_head_with_more_classes_gives_the_bytes_of_a_full_export(
    exported: Export, cache: ContentCache, no_exporter: Callable[[], None]
) -> None:
    heads = [network(3, seed=1), network(3, seed=2), network(5, seed=3)]
    expected = [exported(deployed) for deployed in heads]
    assert len(set(expected)) == 3
    assert exported(heads[0], cache) == expected[0]
    no_exporter()
    assert [exported(deployed, cache) for deployed in heads] == expected


@pytest.mark.long
def test_another_backbone_is_exported(exported: Export, cache: ContentCache) -> None:
    exported(network(3), cache)
    other = network(3, backbone=1)
    assert exported(other, cache) == exported(other)


@pytest.mark.long
def test_a_damaged_graph_is_noticed_and_exported_again(exported: Export, cache: ContentCache) -> None:
    expected = exported(network(3), cache)
    [key] = keys(cache)
    [(_, row)] = cache.get([key])
    cache.put([(key, row[:-9] + b"\0" + row[-8:])])  # with a checksum that fits
    assert exported(network(3), cache) == expected
    assert list(cache.get([key])) == [(key, row)]


def keys(cache: ContentCache) -> list[str]:
    with closing(sqlite3.connect(cache.path)) as database:
        return [key for (key,) in database.execute("SELECT key FROM rows")]


def same_bias(deployed: CalibratedModel) -> CalibratedModel:
    """The network with the bias of its convolution as the bias of its head."""
    with torch.no_grad():
        deployed.network.classifier.bias.copy_(deployed.network.get_parameter("backbone.conv.bias"))
    return deployed


COINCIDENCES = {
    "the temperature is 1": CalibratedModel(network(FEATURES).network, 1.0),
    "the bias is that of a convolution": same_bias(network(FEATURES)),
}


@pytest.mark.long
@pytest.mark.parametrize("special", COINCIDENCES.values(), ids=COINCIDENCES)
def test_where_an_export_may_write_another_graph_there_is_an_export(
    exported: Export, cache: ContentCache, special: CalibratedModel
) -> None:
    exported(network(FEATURES, seed=2), cache)
    assert exported(special, cache) == exported(special)
