from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from edgeline.pipeline.config import PipelineConfig, PreprocessConfig, load_config, parse_config
from edgeline.serve.artifact.manifest import NAME
from edgeline.serve.errors import ConfigError
from edgeline.serve.preprocess import INTERPOLATIONS, JPEG_DECODINGS


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from models(field.annotation)


def config_error(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments, **options)
    return str(caught.value)


FILES = {
    "TOML": ("edgeline.toml", 'data = "photos"\nseed = 3\n[train]\nepochs = 5\nlearning_rate = 1e-5\n'),
    "YAML": ("edgeline.yaml", "data: photos\nseed: 3\ntrain:\n  epochs: 5\n  learning_rate: 1.0e-5\n"),
    "JSON": ("config.json", '{"data": "photos", "seed": 3, "train": {"epochs": 5, "learning_rate": 1e-05}}'),
}


@pytest.mark.parametrize(("name", "text"), FILES.values(), ids=FILES)
def test_a_file_may_be_toml_yaml_or_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    config = load_config(tmp_path / name)
    assert (config.data, config.seed, config.train.epochs, config.train.learning_rate) == ("photos", 3, 5, 1e-5)


def test_without_a_file_the_defaults_apply() -> None:
    assert load_config() == PipelineConfig()


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert load_config(tmp_path / "empty.yaml") == PipelineConfig()


def test_overrides_take_precedence_over_the_file_and_options_over_both(tmp_path: Path) -> None:
    file = tmp_path / "edgeline.toml"
    file.write_text('data = "a"\nseed = 1\nmodel = "x"\n[train]\nepochs = 5\npatience = 6\n')
    config = load_config(file, ["seed=2", "data=b", "train.epochs=7"], data="c", model=None)
    assert (config.data, config.seed, config.model) == ("c", 2, "x")
    assert (config.train.epochs, config.train.patience) == (7, 6)


OVERRIDES = {
    "a number": ("train.weight_decay=0.5", 0.5),
    "equals signs in the value": ("weights=a=b.pth", "a=b.pth"),
    "text": ("weights=none", "none"),
    "quoted text": ('name="7"', "7"),
}


@pytest.mark.parametrize(("override", "value"), OVERRIDES.values(), ids=OVERRIDES)
def test_an_override_is_parsed_as_json_if_possible(override: str, value: Any) -> None:
    found: Any = load_config(None, [override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


BAD_OVERRIDES = {
    "no equals sign": ("train.epochs", "must look like train.epochs=5"),
    "no key": ("=5", "must look like train.epochs=5"),
    "a crop that leaves nothing": ("preprocess.crop_fraction=0.05", "must be 0 or at least 0.1"),
    "an input too small to see on": ("preprocess.size=8", "must be 0 or at least 32"),
    "an unknown setting": ("train.epoch=5", "unknown setting train.epoch; did you mean train.epochs?"),
    "a setting of a section, without it": ("epochs=5", "unknown setting epochs; did you mean train.epochs?"),
    "an unknown section": ("training.epochs=5", "unknown setting training; did you mean train?"),
    "nothing like it": ("zzz=1", "unknown setting zzz"),
    "below a value": ("seed.x=1", "seed: input should be a valid integer"),
    "an empty part": ("train..x=1", "unknown setting train."),
    "a value for a section": ("train=5", "train: "),
    "text for a number": ("train.epochs=many", "train.epochs: input should be a valid integer"),
    "out of range": ("prepare.test_share=1", "prepare.test_share: input should be less than 1, got 1"),
    "not a number": ("train.learning_rate=NaN", "train.learning_rate: input should be"),
    "infinite": ("train.learning_rate=Infinity", "train.learning_rate: input should be a finite number"),
    "another word": ("train.strategy=heads", "train.strategy: input should be 'auto', 'head', 'few-shot'"),
    "too small a class": ("prepare.min_per_class=0", "greater than or equal to 1"),
}


@pytest.mark.parametrize(("override", "words"), BAD_OVERRIDES.values(), ids=BAD_OVERRIDES)
def test_a_bad_override_is_rejected_with_its_reason(override: str, words: str) -> None:
    assert words in config_error(None, [override])


def test_a_value_in_place_of_a_section_cannot_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "edgeline.toml").write_text("train = 3\n")
    assert "train is not a section" in config_error(tmp_path / "edgeline.toml", ["train.epochs=5"])


def test_all_problems_are_reported_at_once() -> None:
    problems = config_error(None, ["train.epoch=5", "seed=-1", "prepare.on_leakage=ask"])
    assert all(setting in problems for setting in ("unknown setting train.epoch", "seed: ", "prepare.on_leakage: "))


BAD_FILES = {
    "broken TOML": ("edgeline.toml", b"seed = \n", "is not TOML"),
    "broken YAML": ("edgeline.yaml", b"a: [1\n", "is not YAML"),
    "broken JSON": ("config.json", b"{", "is not JSON"),
    "YAML that builds objects": ("edgeline.yaml", b"!!python/object/apply:os.getcwd []", "is not YAML"),
    "a list": ("edgeline.yaml", b"- a\n- b\n", "must contain keys and values, got list"),
    "a word": ("edgeline.yaml", b"photos", "must contain keys and values, got str"),
    "bytes that are not text": ("edgeline.toml", b"\xff\xfe", "cannot be read"),
    "a number as a key": ("edgeline.yaml", b"1: 2\n", "keys should be strings"),
}


@pytest.mark.parametrize(("name", "content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_rejected_with_its_name(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in config_error(tmp_path / name).replace("Keys", "keys")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "edgeline.toml cannot be read: No such file" in config_error(tmp_path / "edgeline.toml")
    assert "cannot be read: Is a directory" in config_error(tmp_path)


def test_every_interpolation_can_be_configured() -> None:
    assert set(get_args(PreprocessConfig.model_fields["interpolation"].annotation)) == {"own", *INTERPOLATIONS}
    assert set(get_args(PreprocessConfig.model_fields["jpeg_decoding"].annotation)) == set(JPEG_DECODINGS)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config().train.epochs = 5  # type: ignore[misc]


@pytest.mark.parametrize("model", list(models(PipelineConfig)), ids=lambda model: model.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not (field.description or "").endswith(".")] == []


ARTIFACT_NAMES = {
    "digits": ("digits", "digits"),
    "a folder": ("/data/Red Flowers/", "red-flowers"),
    "a dot in it": ("/data/flowers.v2", "flowers-v2"),
    "a CSV file": ("/data/List.CSV", "list"),
    "punctuation around it": ("/data/__x__", "x"),
    "no ASCII letter": ("/data/фото", "model"),
    "the root folder": ("/", "model"),
    "long": ("/data/" + "a" * 63 + "-bb", "a" * 63),
}


@pytest.mark.parametrize(("data", "name"), ARTIFACT_NAMES.values(), ids=ARTIFACT_NAMES)
def test_an_artifact_is_named_after_its_data(data: str, name: str) -> None:
    assert load_config(data=data).artifact_name == name


def test_a_configured_name_takes_precedence() -> None:
    assert load_config(data="digits", name="my_model-2").artifact_name == "my_model-2"


@given(st.text(min_size=1).filter(lambda text: "\0" not in text and text.isprintable()))
def test_a_valid_name_can_be_derived_from_any_data(data: str) -> None:
    assert NAME.fullmatch(PipelineConfig(data=data).artifact_name)


@pytest.mark.parametrize("name", ["Capitals", "a b", "../up", "-a", "a" * 65, "ä"])
def test_an_invalid_name_is_rejected(name: str) -> None:
    assert "name must be lower-case letters" in config_error(name=name)


def test_everything_is_written_below_one_folder() -> None:
    config = parse_config({"artifacts": "out"})
    assert (config.store, config.runs, config.cache) == (Path("out/store"), Path("out/runs"), Path("out/cache"))


CONTRADICTIONS = {
    "momentum without sgd": (["train.momentum=0.9"], "momentum is a setting of optimizer=sgd"),
    "partial without stages": (["train.strategy=partial"], "needs the stages to train in unfreeze"),
    "stages without partial": (['train.unfreeze=["blocks.6"]'], "unfreeze is a setting of strategy=partial"),
    "plateau with gradual": (["train.strategy=gradual", "train.schedule=plateau"], "use schedule=cosine"),
    "rare classes twice": (["train.sampling=balanced"], "set class_weights=none"),
}


@pytest.mark.parametrize(("overrides", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_training_settings_that_contradict_each_other_are_rejected_with_what_to_change(
    overrides: list[str], words: str
) -> None:
    message = config_error(None, overrides)
    assert message.startswith("train: ")
    assert words in message
    assert "\n" not in message
    assert "{" not in message


@pytest.mark.parametrize("value", ["blocks.5,blocks.6", "blocks.5, blocks.6", '["blocks.5","blocks.6"]'])
def test_a_list_of_names_needs_no_brackets(value: str) -> None:
    assert load_config(None, [f"train.unfreeze={value}", "train.strategy=partial"]).train.unfreeze == ("blocks.5", "blocks.6")
