"""The examples of docs/learn do what their pages say, on features whose answer is known; `make long` runs them on photos."""

import importlib
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LEARN = ROOT / "docs" / "learn"
EXAMPLES = ["domain_adaptation", "maml"]


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the test names."""
    monkeypatch.syspath_prepend(LEARN)
    return importlib.import_module(request.param)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_at_most_a_hundred_lines(name: str) -> None:
    assert len((LEARN / f"{name}.py").read_text().splitlines()) <= 100


def clusters(classes: int, each: int, *, shift: float = 0.0) -> tuple[torch.Tensor, np.ndarray]:
    """Features of some classes in 32 dimensions; the shift moves all by that share of the way from class 0 to class 1."""
    centers = 2 * np.random.default_rng(1).normal(size=(classes, 32))
    labels_N = np.repeat(np.arange(classes), each)
    noise = np.random.default_rng(0).normal(size=(len(labels_N), 32))
    return torch.from_numpy(centers[labels_N] + noise + shift * (centers[1] - centers[0])).float(), labels_N


@pytest.mark.parametrize("example", ["domain_adaptation"], indirect=True)
def test_the_discrepancy_is_zero_for_equal_domains_and_grows_with_their_distance(example: ModuleType) -> None:
    source_ND, _ = clusters(3, 20)
    distances = [example.mk_mmd(source_ND, source_ND + shift).item() for shift in (0.0, 0.5, 2.0)]
    assert distances[0] == pytest.approx(0, abs=1e-5)
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.long
@pytest.mark.parametrize("example", ["domain_adaptation"], indirect=True)
def test_adaptation_recovers_a_shifted_domain_that_the_plain_head_does_not(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "SEEDS", 1)
    monkeypatch.setattr(example, "HIDDEN", 32)
    source, target = clusters(4, 60), clusters(4, 60, shift=0.8)
    found = {name: values.mean() for name, values in example.compare(source, target).items()}
    assert found["plain head"] < 0.9
    assert found["with MK-MMD"] > found["small network"] + 0.05


@pytest.mark.long
@pytest.mark.parametrize("example", ["maml"], indirect=True)
def test_maml_learns_episodes_of_classes_that_it_has_not_seen(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "META_STEPS", 30)
    monkeypatch.setattr(example, "TEST_EPISODES", 10)
    monkeypatch.setattr(example, "TASKS", 4)
    features_ND, labels_N = clusters(16, 30)
    maml, plain = example.compare(torch.nn.functional.normalize(features_ND), labels_N, shots=1).mean(0)
    assert maml > 0.7  # chance is 0.2
    assert plain > 0.7


@pytest.mark.parametrize("example", ["maml"], indirect=True)
def test_an_episode_has_disjoint_photos_of_as_many_classes(example: ModuleType) -> None:
    features_ND, labels_N = torch.arange(200.0)[:, None], np.repeat(np.arange(8), 25)
    classes = [np.flatnonzero(labels_N == label) for label in range(8)]
    support, names, query, truth = example.draw_episode(features_ND, classes, 3, np.random.default_rng(0))
    assert set(support.flatten().tolist()).isdisjoint(query.flatten().tolist())
    for features, given in ((support, names), (query, truth)):
        assert len({(int(name), labels_N[int(row)]) for name, row in zip(given, features, strict=True)}) == example.WAYS


def write_colors(folder: Path, classes: int, brightness: float) -> None:
    """Photos of one color for each class."""
    rng = random.Random(0)
    for number in range(classes):
        (folder / str(number)).mkdir(parents=True)
        for index in range(16):
            color = [brightness * (40 + 100 * (number // 3**place % 3)) + rng.randrange(12) for place in range(3)]
            Image.new("RGB", (48, 40), tuple(map(int, color))).save(folder / str(number) / f"{index}.png")


@pytest.mark.long
@pytest.mark.parametrize(("name", "lines"), [("domain_adaptation", 3), ("maml", 3)])
def test_an_example_runs_on_folders_of_photos_and_prints_its_figures(name: str, lines: int, tmp_path: Path) -> None:
    write_colors(tmp_path / "source", 10, 1.0)
    write_colors(tmp_path / "target", 10, 0.7)
    data = ["source", "target"] if name == "domain_adaptation" else ["source", "1"]
    command = [sys.executable, LEARN / f"{name}.py", *data, "artifacts"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\d+\.\d.* %", done.stdout)) == lines
