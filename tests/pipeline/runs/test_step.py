from pathlib import Path

import pytest

from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.runs.run import Run, create_run
from edgeline.pipeline.runs.step import Step, build_or_reuse, step_key


@pytest.fixture(name="run")
def new_run(tmp_path: Path) -> Run:
    return create_run(load_config(None, [], data="digits", artifacts=str(tmp_path / "artifacts")), "fingerprint")


def test_a_step_of_a_run_is_built_once(run: Run) -> None:
    key = step_key({"x": 1}, "code")
    first = build_or_reuse(run, "prepare", key, lambda folder: folder.joinpath("a").touch())
    second = build_or_reuse(run, "prepare", key, lambda folder: pytest.fail("built twice"))
    assert (first.reused, second.reused) == (False, True)
    assert first.folder == second.folder == run.step("prepare")
    assert first.seconds >= 0


def test_a_key_depends_on_inputs_code_and_packages() -> None:
    keys = [
        step_key({"a": 1}, "code", ("numpy",)),
        step_key({"a": 2}, "code", ("numpy",)),
        step_key({"a": 1}, "other code", ("numpy",)),
        step_key({"a": 1}, "code", ("pillow",)),
        step_key({"a": 1}, "code", ("no-such-package",)),
    ]
    assert len(set(keys)) == 5
    assert step_key({"b": 2, "a": 1}, "") == step_key({"a": 1, "b": 2}, "")


def changed(config: PipelineConfig, **values: object) -> PipelineConfig:
    return config.model_copy(update=values)


def test_a_steps_key_depends_only_on_its_own_settings(run: Run) -> None:
    step = Step(name="train", build="edgeline.pipeline.data.split:carve", reads=(), settings=("seed", "train.epochs"))
    key = step.key(run)
    config = run.config
    assert step.key(Run(run.folder, changed(config, seed=7))) != key
    assert step.key(Run(run.folder, changed(config, train=config.train.model_copy(update={"epochs": 3})))) != key
    assert step.key(Run(run.folder, changed(config, train=config.train.model_copy(update={"dropout": 0.1})))) == key
    assert step.key(Run(run.folder, changed(config, model="mobilenet_v2"))) == key


def test_a_steps_key_depends_on_the_results_it_reads(run: Run) -> None:
    step = Step(name="train", build="edgeline.pipeline.data.split:carve", reads=("prepare",))
    keys = set()
    for content in ("one", "two"):
        build_or_reuse(run, "prepare", content, lambda folder, text=content: folder.joinpath("a").write_text(text))
        keys.add(step.key(run))
    assert len(keys) == 2


def test_a_steps_key_depends_on_the_files_that_its_settings_refer_to(run: Run) -> None:
    digests = {"weights": "a"}
    step = Step(name="train", build="edgeline.pipeline.data.split:carve", reads=(), external=lambda config: digests)
    before = step.key(run)
    digests["weights"] = "b"
    assert step.key(run) != before


def test_a_misspelt_setting_is_an_error(run: Run) -> None:
    step = Step(name="train", build="edgeline.pipeline.data.split:carve", reads=(), settings=("train.epoch",))
    with pytest.raises(KeyError):
        step.key(run)
