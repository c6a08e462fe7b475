"""Heatmaps and feature maps, compared with what they are by definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeline.pipeline.explanation.embedding_map import place, write_embedding_png
from edgeline.pipeline.explanation.feature_maps import choose_layer, feature_maps
from edgeline.pipeline.explanation.heatmaps import compute_heatmaps
from edgeline.pipeline.explanation.pictures import save_grid, save_heatmap
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.pretrained import Normalization
from edgeline.serve.errors import ConfigError

SIZE = (32, 32)


def network(*, pooled: bool = True) -> Network:
    """A small network that averages its last map, or flattens it."""
    torch.manual_seed(0)
    end: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if pooled else []
    features = 8 if pooled else 8 * 8 * 8
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), *end, nn.Flatten()]
    made = Network(nn.Sequential(*layers), features, 3, 0.2, Normalization((127.0,) * 3, (128.0,) * 3))
    nn.init.normal_(made.classifier.weight)
    return made.eval()


def pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def test_the_mean_of_a_class_activation_map_is_the_logit() -> None:
    small = network()
    found = compute_heatmaps(small, pixels(), np.array([2, 0]))
    with torch.inference_mode():
        logits_NK = small(torch.from_numpy(pixels())).numpy()
    assert found.cam_Nhw is not None
    np.testing.assert_allclose(found.cam_Nhw.mean((1, 2)), logits_NK[[0, 1], [2, 0]], rtol=1e-4)


def test_an_input_gradient_is_the_change_of_the_logit_by_a_pixel() -> None:
    small = network()
    found = compute_heatmaps(small, pixels(1), np.array([1]))
    assert found.gradient_NHW.shape == (1, *SIZE)
    changed = torch.from_numpy(pixels(1)).permute(0, 3, 1, 2).double()
    small.double()
    steps = []
    for channel in range(3):
        logits = []
        for step in (-0.01, 0.01):
            moved = changed.clone()
            moved[0, channel, 9, 11] += step
            with torch.inference_mode():
                logits.append(small.head(small.features(moved))[0, 1].item())
        steps.append(abs(logits[1] - logits[0]) / 0.02)
    assert found.gradient_NHW[0, 9, 11] == pytest.approx(max(steps), rel=1e-3)


def test_a_network_that_does_not_average_its_last_map_has_gradients_only() -> None:
    found = compute_heatmaps(network(pooled=False), pixels(), np.array([0, 0]))
    assert found.cam_Nhw is None
    assert (found.gradient_NHW > 0).any()


def test_the_feature_maps_are_the_channels_that_vary_most() -> None:
    small = network()
    found = feature_maps(small, "0", pixels()[0])
    with torch.inference_mode():
        normalized = (torch.from_numpy(pixels()[:1]).permute(0, 3, 1, 2).float() - 127) / 128
        [maps_Chw] = small.backbone[0](normalized).numpy()  # type: ignore[index]
    np.testing.assert_allclose(found.maps_Chw, maps_Chw[found.channels], atol=1e-5)
    deviations = maps_Chw.std((1, 2))[found.channels]
    assert sorted(deviations, reverse=True) == deviations.tolist()


def test_a_layer_is_chosen_by_name_and_an_unknown_one_names_the_nearest() -> None:
    small = network()
    assert choose_layer(small, None, SIZE) == "1"  # the last of 16 x 16; that of 8 x 8 is coarse
    assert choose_layer(small, "2", SIZE) == "2"
    with pytest.raises(ConfigError, match="no layer '22' with feature maps; the nearest are 2"):
        choose_layer(small, "22", SIZE)


def test_the_hottest_place_of_a_heatmap_has_color_and_the_others_are_gray(tmp_path: Path) -> None:
    heat_hw = np.full((4, 4), -1.0)
    heat_hw[0, 0] = 5
    save_heatmap(tmp_path / "heat.jpg", pixels()[0], heat_hw)
    with Image.open(tmp_path / "heat.jpg") as picture:
        colors_HW3 = np.asarray(picture).astype(int)
    saturation_HW = colors_HW3.max(2) - colors_HW3.min(2)
    assert saturation_HW[:30, :30].mean() > 40
    assert saturation_HW[60:, 60:].mean() < 5


def test_sixteen_maps_are_a_grid_of_four_by_four(tmp_path: Path) -> None:
    save_grid(tmp_path / "grid.png", np.random.default_rng(0).normal(size=(16, 7, 7)))
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (332, 332)


def test_principal_components_separate_what_differs_most(tmp_path: Path) -> None:
    features_ND = np.random.default_rng(0).normal(0, 0.1, (20, 6)).astype(np.float32)
    features_ND[10:, 3] += 5
    places_N2 = place(features_ND)
    assert places_N2.shape == (20, 2)
    left, right = sorted((places_N2[:10, 0].mean(), places_N2[10:, 0].mean()))
    assert right - left == pytest.approx(5, abs=0.2)
    np.testing.assert_array_equal(place(features_ND), places_N2)
    assert place(features_ND[:1]).tolist() == [[0, 0]]
    targets_N = np.repeat([0, 1], 10)
    write_embedding_png(tmp_path / "map.png", places_N2, targets_N, targets_N == 2, ["$a", "b"])
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 300


def test_umap_that_is_not_installed_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(ConfigError, match="pip install umap-learn"):
        place(np.eye(4), "umap")
