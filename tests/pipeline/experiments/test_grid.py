"""The grid of an experiment: every combination once, all on the same split."""

import pytest

from edgeline.pipeline.config import load_config
from edgeline.pipeline.experiments.grid import command_of, make_cells, read_axes, split_values
from edgeline.serve.errors import ConfigError

VALUES = {
    "one value": ("1e-3", ["1e-3"]),
    "several": ("1e-3, 3e-4", ["1e-3", "3e-4"]),
    "a list": ('["a","b"]', ['["a","b"]']),
    "two lists": ('["a","b"],["c"]', ['["a","b"]', '["c"]']),
    "a comma in quotes": ('"a,b",c', ['"a,b"', "c"]),
}


@pytest.mark.parametrize(("text", "expected"), VALUES.values(), ids=VALUES)
def test_values_are_split_at_commas_outside_of_brackets_and_quotes(text: str, expected: list[str]) -> None:
    assert split_values(text) == expected


def test_there_is_a_cell_for_each_combination_and_seed_and_its_name_has_what_varies() -> None:
    axes = read_axes(["train.learning_rate=1e-3,3e-4", "model=mobilenet_v2,resnet18", "train.epochs=5"])
    cells = make_cells({"data": "photos", "seed": 7}, axes, seeds=2)
    assert [(cell.setting, cell.seed) for cell in cells[:3]] == [
        ("learning_rate 1e-3, model mobilenet_v2", 7),
        ("learning_rate 1e-3, model mobilenet_v2", 8),
        ("learning_rate 1e-3, model resnet18", 7),
    ]
    assert len(cells) == len({cell.key for cell in cells}) == 8
    assert {(cell.config.train.epochs, cell.config.data) for cell in cells} == {(5, "photos")}


def test_all_seeds_have_the_split_of_the_first_which_is_an_ordinary_run() -> None:
    first, second = make_cells({"data": "photos", "seed": 3}, {}, seeds=2)
    assert first.config == load_config(data="photos", seed=3)
    assert (second.config.seed, second.config.prepare.seed) == (4, 3)
    [_, given] = make_cells({"seed": 3, "prepare": {"seed": 9}}, {}, seeds=2)
    assert given.config.prepare.seed == 9


INVALID = {
    "no value": (["train.epochs="], "must look like"),
    "no equals sign": (["train.epochs"], "must look like"),
    "the same setting twice": (["train.epochs=1", "train.epochs=2"], "given twice"),
    "an unknown setting": (["train.epoch=1,2"], "epoch 1: unknown setting train.epoch; did you mean train.epochs"),
    "a value out of range": (["train.epochs=1,-2"], "epochs -2: train.epochs"),
    "the same value twice": (["train.learning_rate=1e-3,0.001"], "two cells are the same"),
    "the seed": (["seed=1,2"], "--seeds"),
}


@pytest.mark.parametrize(("overrides", "message"), INVALID.values(), ids=INVALID)
def test_an_invalid_grid_is_reported_before_anything_runs(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_cells({}, read_axes(overrides), seeds=1)


def test_the_command_of_a_cell_gives_its_configuration() -> None:
    [_, cell] = make_cells({"data": "my photos"}, read_axes(["train.learning_rate=1e-3", "export.variants=[]"]), seeds=2)
    command = command_of(cell)
    assert command.startswith("edgeline run --data 'my photos' --set seed=1 --set prepare.seed=0")
    assert "--set train.learning_rate=0.001" in command
    assert "--set 'export.variants=[]'" in command
