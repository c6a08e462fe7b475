"""What a run is asked to do: one frozen model a step, one file, overrides on top.

    load_config(Path("edgeline.toml"), ["train.epochs=5"], data="photos/")

A file is TOML or YAML; its sections are the steps. Unknown keys are refused with the nearest known one, and all problems
are told at once. The same models are the typed parameters of the scheduled deployment, and `docs/config.md` is written
from them.
"""

import difflib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from edgeline.serve.artifact.manifest import NAME
from edgeline.serve.errors import ConfigError
from edgeline.serve.preprocess import Interpolation

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Step(BaseModel):
    """Frozen, and refusing what it does not know and numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PrepareConfig(Step):
    """Find, open, compare and split the images."""

    test_share: Fraction = Field(
        0.2, gt=0, description="Share of each class held out for the test split, where the data has no split of its own."
    )
    val_share: Fraction = Field(
        0.2, gt=0, description="Share of each class in what is left that becomes the validation split, where the data has none."
    )
    min_per_class: int = Field(3, ge=3, description="Fewest distinct images a class may have: one for each split.")
    max_rejected_share: Fraction = Field(0.1, description="A larger share of unreadable images stops the run.")
    on_leakage: Literal["drop", "stop"] = Field(
        "drop",
        description="What to do where the data's own splits share a picture: `drop` the copy from the split that is trained "
        "on (the report lists it), or `stop`.",
    )
    max_bytes: int = Field(64 * 2**20, ge=1, description="Largest image file, in bytes.")
    max_pixels: int = Field(50_000_000, ge=1, description="Largest width * height of an image.")


class PreprocessConfig(Step):
    """Turn a picture into the model's input, the same way in training, evaluation and on every device."""

    size: int = Field(
        0,
        ge=0,
        le=1024,
        description="Rows and columns of the model's input; 0 takes what the weights were trained for. Smaller is faster.",
    )
    crop_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the shorter side that the centered crop keeps; 0 takes what the weights were evaluated with. "
        "1 where what matters may lie at the edge.",
    )
    interpolation: Literal["own", Interpolation] = Field(
        "own", description="Filter of the resize; `own` takes what the weights were trained with."
    )
    jpeg_decoding: Literal["scaled", "full"] = Field(
        "scaled",
        description="`scaled`: a JPEG much larger than the model's input is decoded at 1/2, 1/4 or 1/8 of its size, never "
        "less than twice what the model sees; several times faster. `full`: never.",
    )

    @field_validator("size", "crop_fraction")
    @classmethod
    def _own_or_sensible(cls, value: float, field: ValidationInfo) -> float:
        least = {"size": 32, "crop_fraction": 0.1}[str(field.field_name)]
        if 0 < value < least:
            raise ValueError(f"must be 0 or at least {least}")
        return value


class TrainConfig(Step):
    """Train the head, or more of the network."""

    strategy: Literal["head", "full", "differential", "gradual"] = Field(
        "head",
        description="`head`: frozen backbone, its features computed once. `full`: all layers, one learning rate. "
        "`differential`: lower rates towards the input. `gradual`: unfreeze from the top.",
    )
    epochs: int = Field(
        0, ge=0, description="Most passes over the data; 0 takes the strategy's own number (`head` 200, the others 12)."
    )
    batch_size: int = Field(32, ge=2, description="Images a step; the head on cached features uses it too.")
    learning_rate: float = Field(0.0, ge=0, description="Peak learning rate; 0 takes the strategy's own.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    dropout: Fraction = Field(0.5, description="Share of features dropped before the last layer.")
    label_smoothing: Fraction = Field(0.0, description="Probability spread over the other classes in the loss.")
    class_weights: Literal["balanced", "sqrt", "none"] = Field(
        "balanced",
        description="`balanced` weighs each class by the inverse of its count, `sqrt` by that number's square root: rare "
        "classes are heard, and the common ones lose next to nothing.",
    )
    patience: int = Field(20, ge=1, description="Epochs without a better validation loss after which training stops.")
    refit: bool = Field(
        True,
        description="`head`: once validation has shown the best number of epochs, train again on train and validation together "
        "for as many, at least 40. The temperature stays the one of images not learned from.",
    )
    views: int = Field(
        0,
        ge=0,
        le=16,
        description="Augmented views of each training image beside the plain one; for `head` their features are cached too.",
    )
    augment: Literal["none", "light", "flip"] = Field(
        "light",
        description="`light`: random crop and color; `flip`: that and mirror images; `none`. "
        "Digits and text must not be mirrored.",
    )
    layer_decay: float = Field(
        0.7,
        gt=0,
        le=1,
        description="`differential` and `gradual`: each stage's rate is this share of the next one's towards the head.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes a GPU where there is one, and says which.")


class EvaluateConfig(Step):
    """Measure on the untouched test split."""

    bins: int = Field(15, ge=2, le=100, description="Equal-width confidence bins of the expected calibration error.")


Target = Literal["x86-vnni", "x86-avx2", "arm64"]
VariantName = Literal[
    "onnx-int8",
    "onnx-fp16",
    "ort-fp32",
    "ort-int8",
    "openvino-fp32",
    "openvino-int8",
    "litert-fp32",
    "litert-int8",
    "executorch-fp32",
    "executorch-int8",
    "coreml-fp16",
]


class ExportConfig(Step):
    """Write the ONNX file, and further variants of it."""

    opset: int = Field(18, ge=18, le=23, description="ONNX operator set; 18 runs on ONNX Runtime 1.14 and newer.")
    min_runtime: str = Field(
        "1.15",
        pattern=r"^(onnxruntime>=)?1\.(1[4-9]|[2-9][0-9])(\.[0-9]+)?$",
        description="Oldest ONNX Runtime that the artifact must run on, `1.15` or `onnxruntime>=1.15`; `opset` may be no newer "
        "than it knows. Prove it with `python -m edgeline.export.emulation.old_runtime ARTIFACT RELEASE`.",
    )
    variants: tuple[VariantName, ...] = Field(
        ("onnx-int8",),
        description="What to ship beside the float32 reference, each only if it holds: `onnx-int8` (a quarter of the size, "
        "about twice as fast), `onnx-fp16` (half the download, computes in float32), `ort-fp32` and `ort-int8` (ONNX Runtime's "
        "own format, for a reduced build on phones). Others are other runtimes', whose tools lie apart and take gigabytes: "
        "`openvino-fp32`, `openvino-int8`; `litert-fp32`, `litert-int8` (`.tflite`, for Android); `executorch-fp32`, "
        "`executorch-int8` (for XNNPACK); `coreml-fp16` (iOS 16, macOS 13; checked, but not run where Core ML is not).",
    )
    require_variants: bool = Field(
        False, description="Stop the run where a variant does not hold, instead of going on without it."
    )
    explain: bool = Field(
        False,
        description="Give the graph two more outputs, `evidence` and `embedding`: each class's logit by place of the picture "
        "(for `?explain=cam`), and the features, by whose distance from the training images' drift is measured. Costs "
        "1 to 2 % of time with ten classes, 13 % with 1,000. ONNX and ORT files only; for networks whose classifier takes "
        "their averaged last map (EfficientNet, MobileNetV2, ResNet).",
    )
    target: Target = Field(
        "x86-vnni",
        description="Which processor int8 is chosen for. `x86-avx2`: 7-bit weights, so that older x86 answers the same.",
    )
    calibration_images: int = Field(
        128, ge=8, le=4096, description="Training images, equally many a class, that the int8 ranges are measured on."
    )
    max_drop: float = Field(
        1.0, ge=0, le=5, description="Most points of accuracy that int8 may lose on validation images against float32."
    )
    min_speedup: float = Field(
        1.05, ge=0, description="int8 that is not this many times as fast as float32 on this machine is not shipped."
    )
    qat_epochs: int = Field(
        2,
        ge=0,
        le=100,
        description="Where no int8 recipe holds, fine-tune the weights under int8's rounding for so many passes over training "
        "images, without their labels; 0 does not. An epoch takes minutes on a CPU.",
    )
    thorough: bool = Field(
        False, description="Try every int8 recipe; by default the slower half only where no quick one holds."
    )


class Int8Thresholds(Step):
    """What an int8 variant must hold against PyTorch, on the held-out images and the hard set."""

    min_sqnr_db: float = Field(15.0, description="Signal to quantization noise ratio of the logits, in decibels.")
    min_agreement: float = Field(0.96, ge=0, le=1, description="Share of images with the same best class.")
    min_clear_agreement: float = Field(
        0.99, ge=0, le=1, description="The same over the images on which the best two classes are over 0.1 apart."
    )
    max_kl: float = Field(0.02, gt=0, description="Mean Kullback-Leibler divergence of the probabilities, in nats.")
    max_difference: float = Field(0.9, gt=0, le=1, description="Largest difference of a probability.")
    max_drop: float = Field(1.0, ge=0, description="Points of accuracy lost on the held-out images, paired.")


class Fp16Thresholds(Int8Thresholds):
    """What the half-precision variant must hold."""

    min_sqnr_db: float = Field(40.0, description="Signal to quantization noise ratio of the logits, in decibels.")
    min_agreement: float = Field(0.99, ge=0, le=1, description="Share of images with the same best class.")
    min_clear_agreement: float = Field(
        1.0, ge=0, le=1, description="The same over the images on which the best two classes are over 0.1 apart."
    )
    max_kl: float = Field(1e-3, gt=0, description="Mean Kullback-Leibler divergence of the probabilities, in nats.")
    max_difference: float = Field(0.1, gt=0, le=1, description="Largest difference of a probability.")
    max_drop: float = Field(0.5, ge=0, description="Points of accuracy lost on the held-out images, paired.")


class VerifyConfig(Step):
    """The gate: what the exported file must hold."""

    images: int = Field(
        512, ge=1, description="Most held-out images to compare on, from test and validation; all where there are fewer."
    )
    odd_batch: int = Field(7, ge=2, description="An odd batch size to run at, beside 1 and the largest.")
    max_batch: int = Field(32, ge=1, le=256, description="The largest batch the artifact is proven for.")
    max_difference: float = Field(
        1e-4,
        gt=0,
        le=1e-4,
        description="Largest difference of any probability from PyTorch's, and of any logit as a share of the largest logit.",
    )
    margin: float = Field(
        1e-3, ge=0, le=1e-3, description="A best class may differ only where the best two are closer than this."
    )
    int8: Int8Thresholds = Field(
        default_factory=Int8Thresholds, description="Thresholds of the int8 variants, against PyTorch."
    )
    fp16: Fp16Thresholds = Field(
        default_factory=Fp16Thresholds, description="Thresholds of the half-precision variant, against PyTorch."
    )


class PublishConfig(Step):
    """Package and publish."""

    golden: int = Field(
        8, ge=2, le=64, description="Held-out images that travel in the artifact as golden samples. They are published with it."
    )
    golden_tolerance: float = Field(
        1e-3,
        gt=0,
        description="Largest difference of a golden probability on any device, and of a golden logit as a share of the "
        "sample's largest.",
    )
    golden_pixel_tolerance: float = Field(
        2.0, gt=0, description="Largest mean difference of a golden image's pixels on any device, of 255."
    )


class PipelineConfig(Step):
    """One run of the line."""

    data: str = Field(
        "digits",
        min_length=1,
        description="A folder of class folders, one of train/ val/ test/ folders of these, a CSV file, "
        "or `digits` for the embedded data.",
    )
    name: str = Field("", description="The artifact's name; by default made from the data's.")
    model: str = Field(
        "efficientnet_lite0",
        min_length=1,
        description="Backbone: `efficientnet_lite0` to `_lite2`, any torchvision classifier, or `timm:<name>`.",
    )
    weights: str = Field("imagenet", min_length=1, description="`imagenet`, `none`, or a local .pth or .safetensors file.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the split and of training.")
    artifacts: str = Field("artifacts", min_length=1, description="Folder of runs, caches and the store.")
    prepare: PrepareConfig = Field(default_factory=PrepareConfig, description="Find, open, compare and split the images.")
    preprocess: PreprocessConfig = Field(
        default_factory=PreprocessConfig, description="Turn a picture into the model's input, the same way everywhere."
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="Train the head, or more of the network.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Measure on the untouched test split.")
    export: ExportConfig = Field(default_factory=ExportConfig, description="Write the ONNX file.")
    verify: VerifyConfig = Field(default_factory=VerifyConfig, description="The gate.")
    publish: PublishConfig = Field(default_factory=PublishConfig, description="Package and publish.")

    @property
    def artifact_name(self) -> str:
        """The name it is published under: `name`, or the data's own, made fit for a folder and a URL."""
        if self.name:
            return self.name
        own = Path(self.data).resolve().name.lower().removesuffix(".csv") if self.data != "digits" else "digits"
        made = "".join(c if c.isascii() and c.isalnum() else "-" for c in own).strip("-")[:64].strip("-")
        return made or "model"

    @property
    def store(self) -> Path:
        """Where it is published."""
        return Path(self.artifacts) / "store"

    @property
    def runs(self) -> Path:
        """Where working results lie."""
        return Path(self.artifacts) / "runs"

    @property
    def cache(self) -> Path:
        """Where what is known of an image's content is kept over runs."""
        return Path(self.artifacts) / "cache"

    @property
    def environments(self) -> Path:
        """Where converters and runtimes that stay apart are installed."""
        return self.cache / "environments"


def load_config(file: Path | None = None, overrides: list[str] | None = None, **options: Any) -> PipelineConfig:
    """Build a configuration from a file, then `key=value` overrides, then options, later ones winning.

    Args:
        file: TOML or YAML, or a run's config.json, or None.
        overrides: `train.epochs=5`; the value is JSON where it parses as such, else text.
        options: top-level fields; None means not given.

    Raises:
        ConfigError: with every problem found.
    """
    values = _read(file) if file else {}
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} must look like train.epochs=5")
        _put(values, key, _parse(value))
    for key, value in options.items():
        if value is not None:
            values[key] = value
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> PipelineConfig:
    """Validate a configuration given as plain values.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        config = PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(problem) for problem in error.errors())) from error
    if not NAME.fullmatch(config.artifact_name):
        raise ConfigError(f"name must be lower-case letters, digits, - and _, at most 64, got {config.artifact_name!r}")
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    kind = {".toml": "TOML", ".json": "JSON"}.get(file.suffix, "YAML")
    parse: dict[str, Callable[[str], Any]] = {"TOML": tomllib.loads, "JSON": json.loads, "YAML": yaml.safe_load}
    try:
        values = parse[kind](text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{file} is not {kind}: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold keys and values, got {type(values).__name__}")
    return values


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {key!r}: {section} is no section")
    values[last] = value


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        model: Any = PipelineConfig
        for part in problem["loc"][:-1]:
            model = model.model_fields[part].annotation
        near = difflib.get_close_matches(str(problem["loc"][-1]), model.model_fields, n=1, cutoff=0.5)
        return f"{where} is no setting" + (f"; did you mean {near[0]}?" if near else "")
    return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"
