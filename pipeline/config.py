"""The configuration of a run: one frozen model for each step, read from a file, with overrides.

    load_config(Path("edgeline.toml"), ["train.epochs=5"], data="photos/")

A file is TOML or YAML, with one section for each step. An unknown key is an error that suggests the nearest known one, and
all problems are reported at once. The same models are the typed parameters of the scheduled deployment, and
`docs/config.md` is generated from them.
"""

import difflib
from pathlib import Path
from typing import Any, Literal

from pathspec import GitIgnoreSpec
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from edgeline.pipeline.config_file import apply_override, read_values
from edgeline.pipeline.config_section import Fraction, Names, Section
from edgeline.pipeline.engine_config import EngineConfig
from edgeline.pipeline.names import LayoutName
from edgeline.pipeline.thresholds import Fp16Thresholds, Int8Thresholds
from edgeline.pipeline.train_config import TrainConfig
from edgeline.serve.artifact.manifest import NAME
from edgeline.serve.errors import ConfigError
from edgeline.serve.preprocess import Interpolation


class PrepareConfig(Section):
    """Find, validate, deduplicate and split the images."""

    seed: int | None = Field(None, ge=0, lt=2**31, description="Seed of the split; by default the run's `seed`.")
    layout: LayoutName = Field(
        "auto",
        description="`top`: each folder in `data` is a class. `leaf`: each folder that directly contains images is one. "
        "`splits`: the folders in `data` are train/, val/ and test/. `csv`: `data` is a CSV file. `auto`: decided by the names "
        "of the folders; where two readings are plausible, the run stops and lists them.",
    )
    labels: Names = Field(
        (),
        description="CSV files with the columns `path,label[,group]`, such as those that `edgeline label` writes: their photos "
        "join those of `data`, as training images if it defines splits.",
    )
    ignore: Names = Field(
        (), description='Files and folders to leave out, as in a .gitignore file: `["masks/", "*_mask.png"]`.'
    )
    include_hidden: bool = Field(False, description="Read files and folders whose name starts with a dot.")
    follow_links: bool = Field(False, description="Follow links that lead to files and folders outside `data`.")
    test_share: Fraction = Field(
        0.2, gt=0, description="Share of each class held out for the test split, unless the data defines its own splits."
    )
    val_share: Fraction = Field(
        0.2,
        gt=0,
        description="Share of each class, after the test split, that becomes the validation split, unless the data defines "
        "one.",
    )
    keep_splits: int | None = Field(
        None,
        ge=1,
        description="A published version of this name: images that it knows keep their splits, so none that was a test image "
        "is ever trained on. `edgeline retrain` sets it.",
    )
    min_per_class: int = Field(
        3,
        ge=1,
        description="Minimum number of distinct images in a class: one for each split. 1 or 2 only for data with its own "
        "validation and test splits, which then need not have every class.",
    )
    max_rejected_share: Fraction = Field(0.1, description="Stop the run if a larger share of the image files is unusable.")
    on_leakage: Literal["drop", "stop"] = Field(
        "drop",
        description="What to do if the data's own splits share an image: `drop` it from the split closer to training (the "
        "report lists it), or `stop`.",
    )
    near_duplicates: Literal["group", "ignore"] = Field(
        "group",
        description="Reduced, re-encoded or slightly cropped copies of an image: `group` keeps them in one split and lists "
        "them; `ignore` does not look for them.",
    )
    max_bytes: int = Field(64 * 2**20, ge=1, description="Maximum size of an image file, in bytes.")
    max_pixels: int = Field(50_000_000, ge=1, description="Maximum width * height of an image.")

    @field_validator("ignore")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            GitIgnoreSpec.from_lines(value)
        except ValueError as error:
            raise ValueError(f"must be patterns as in a .gitignore file: {error}") from error
        return value


class PreprocessConfig(Section):
    """Turn an image into the model's input, identically in training, in evaluation and on every device."""

    size: int = Field(
        0,
        ge=0,
        le=1024,
        description="Height and width of the model's input; 0 uses the size that the weights were trained with. Smaller is "
        "faster.",
    )
    crop_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the shorter side that the center crop keeps; 0 uses the one that the weights were evaluated "
        "with. Use 1 if objects may lie at the edge.",
    )
    interpolation: Literal["own", Interpolation] = Field(
        "own", description="Interpolation of the resize; `own` uses the one that the weights were trained with."
    )
    jpeg_decoding: Literal["scaled", "full"] = Field(
        "scaled",
        description="`scaled`: decode a JPEG that is much larger than the model's input at 1/2, 1/4 or 1/8 of its size, but "
        "at no less than twice the input size; several times faster. `full`: always decode at full size.",
    )

    @field_validator("size", "crop_fraction")
    @classmethod
    def _own_or_sensible(cls, value: float, field: ValidationInfo) -> float:
        least = {"size": 32, "crop_fraction": 0.1}[str(field.field_name)]
        if 0 < value < least:
            raise ValueError(f"must be 0 or at least {least}")
        return value


class EvaluateConfig(Section):
    """Measure on the test split."""

    bins: int = Field(15, ge=2, le=100, description="Number of equal-width confidence bins of the expected calibration error.")


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


class ExportConfig(Section):
    """Write the ONNX file, and variants of it."""

    opset: int = Field(18, ge=18, le=23, description="ONNX operator set; 18 runs on ONNX Runtime 1.14 and newer.")
    min_runtime: str = Field(
        "1.15",
        pattern=r"^(onnxruntime>=)?1\.(1[4-9]|[2-9][0-9])(\.[0-9]+)?$",
        description="Oldest ONNX Runtime that the artifact must run on, `1.15` or `onnxruntime>=1.15`, which limits `opset`. "
        "Test it with `python -m edgeline.export.emulation.old_runtime ARTIFACT RELEASE`.",
    )
    variants: tuple[VariantName, ...] = Field(
        ("onnx-int8",),
        description="Variants to ship in addition to the float32 reference, each only if it passes verification: `onnx-int8` "
        "(a quarter of the size, about twice as fast), `onnx-fp16` (half the download, computes in float32), `ort-fp32` and "
        "`ort-int8` (ONNX Runtime's own format, for a reduced build on phones). The others are for other runtimes, whose "
        "tools are installed separately and take gigabytes: `openvino-fp32`, `openvino-int8`; `litert-fp32`, `litert-int8` "
        "(`.tflite`, for Android); `executorch-fp32`, `executorch-int8` (for XNNPACK); `coreml-fp16` (iOS 16, macOS 13; its "
        "structure is checked everywhere, its outputs only on macOS).",
    )
    require_variants: bool = Field(
        False, description="Stop the run if a variant fails verification, instead of continuing without it."
    )
    explain: bool = Field(
        False,
        description="Add two outputs to the graph: `evidence`, each class's logit by image region (for `?explain=cam`), and "
        "`embedding`, the features, whose distance from those of the training images measures drift. Costs 1 to 2 % of the "
        "time with ten classes, 13 % with 1,000. ONNX and ORT files only; for networks that classify their average-pooled "
        "last feature map (EfficientNet, MobileNetV2, ResNet).",
    )
    target: Target = Field(
        "x86-vnni",
        description="Processor that int8 is chosen for. `x86-avx2`: 7-bit weights, so that older x86 processors give the "
        "same results.",
    )
    calibration_images: int = Field(
        128, ge=8, le=4096, description="Number of training images, balanced by class, that the int8 ranges are calibrated on."
    )
    max_drop: float = Field(
        1.0,
        ge=0,
        le=5,
        description="Maximum loss of accuracy of int8 against float32 on test images, in percentage points; the release gate "
        "applies the smaller one of this and `verify.int8.max_drop`.",
    )
    min_speedup: float = Field(
        1.05, ge=0, description="Minimum speed of int8 relative to float32 on this machine; a slower file is not shipped."
    )
    qat_epochs: int = Field(
        2,
        ge=0,
        le=100,
        description="If no int8 recipe passes, fine-tune the weights with simulated int8 rounding for this many epochs over "
        "the training images, without their labels; 0 disables it. An epoch takes minutes on a CPU.",
    )
    thorough: bool = Field(
        False, description="Try every int8 recipe; by default, the slower ones are tried only if no quick one passes."
    )


class VerifyConfig(Section):
    """The release gate: requirements on the exported file."""

    images: int = Field(512, ge=1, description="Maximum number of held-out images to compare on, from test and validation.")
    odd_batch: int = Field(7, ge=2, description="A batch size to verify in addition to 1 and the largest.")
    max_batch: int = Field(32, ge=1, le=256, description="The largest batch size that the artifact is verified for.")
    max_difference: float = Field(
        1e-4,
        gt=0,
        le=1e-4,
        description="Maximum difference of any probability from PyTorch's, and of any logit as a share of the largest logit.",
    )
    margin: float = Field(
        1e-3, ge=0, le=1e-3, description="The top class may differ only if the top two probabilities are closer than this."
    )
    int8: Int8Thresholds = Field(
        default_factory=Int8Thresholds, description="Thresholds of the int8 variants, against PyTorch."
    )
    fp16: Fp16Thresholds = Field(
        default_factory=Fp16Thresholds, description="Thresholds of the half-precision variant, against PyTorch."
    )


class PublishConfig(Section):
    """Package and publish."""

    golden: int = Field(
        8,
        ge=2,
        le=64,
        description="Number of held-out images that are shipped in the artifact as golden samples. They become public with it.",
    )
    pictures: bool = Field(
        True,
        description="Show small pictures in the report: of mistakes in the test split, with heatmaps, and of training images "
        "whose labels should be checked. They become public with it.",
    )
    golden_tolerance: float = Field(
        1e-3,
        gt=0,
        description="Maximum difference of a golden probability on any device, and of a golden logit as a share of the "
        "sample's largest.",
    )
    golden_pixel_tolerance: float = Field(
        2.0, gt=0, description="Maximum mean difference of a golden image's pixels on any device, of 255."
    )


class PromoteConfig(Section):
    """When a new version replaces the one in use (`edgeline retrain`)."""

    margin: float = Field(
        0.02,
        gt=0,
        le=0.5,
        description="A new version is promoted only if it loses at most this share of accuracy, and of the mean recall of the "
        "classes. A smaller margin needs more test images.",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="With which probability a version that is worse by the margin is not promoted.",
    )


class PipelineConfig(Section):
    """The configuration of one run."""

    data: str = Field(
        "digits",
        min_length=1,
        description="A folder with one folder for each class, or with train/, val/ and test/ folders of these; a CSV file; "
        "or `digits` for the embedded data.",
    )
    name: str = Field("", description="Name of the artifact; by default derived from `data`.")
    model: str = Field(
        "efficientnet_lite0",
        min_length=1,
        description="Backbone: `efficientnet_lite0` to `_lite2`, any torchvision classifier, or `timm:<name>`.",
    )
    weights: str = Field(
        "imagenet", min_length=1, description="`imagenet`, `none`, or a local file of `torch.save` or safetensors."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the split and of training.")
    artifacts: str = Field("artifacts", min_length=1, description="Folder of runs, caches and the store.")
    prepare: PrepareConfig = Field(
        default_factory=PrepareConfig, description="Find, validate, deduplicate and split the images."
    )
    preprocess: PreprocessConfig = Field(
        default_factory=PreprocessConfig, description="Turn an image into the model's input, identically everywhere."
    )
    train: TrainConfig = Field(default_factory=TrainConfig, description="Train the head, or the backbone too.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Measure on the test split.")
    export: ExportConfig = Field(default_factory=ExportConfig, description="Write the ONNX file, and variants of it.")
    verify: VerifyConfig = Field(default_factory=VerifyConfig, description="The release gate.")
    publish: PublishConfig = Field(default_factory=PublishConfig, description="Package and publish.")
    promote: PromoteConfig = Field(
        default_factory=PromoteConfig, description="Compare a new version with the one in use, and replace it."
    )
    engine: EngineConfig = Field(
        default_factory=EngineConfig, description="Work on many images with this process, or with a cluster."
    )

    @property
    def artifact_name(self) -> str:
        """The name to publish under: `name`, or one derived from `data` that is valid in a folder and a URL."""
        if self.name:
            return self.name
        own = Path(self.data).resolve().name.lower().removesuffix(".csv") if self.data != "digits" else "digits"
        made = "".join(c if c.isascii() and c.isalnum() else "-" for c in own).strip("-")[:64].strip("-")
        return made or "model"

    @property
    def store(self) -> Path:
        """Folder of published artifacts."""
        return Path(self.artifacts) / "store"

    @property
    def runs(self) -> Path:
        """Folder of runs."""
        return Path(self.artifacts) / "runs"

    @property
    def cache(self) -> Path:
        """Folder of results that are shared between runs."""
        return Path(self.artifacts) / "cache"

    @property
    def environments(self) -> Path:
        """Folder of the separate environments of converters and runtimes."""
        return self.cache / "environments"


def load_config(file: Path | None = None, overrides: list[str] | None = None, **options: Any) -> PipelineConfig:
    """Build a configuration from a file, `key=value` overrides and options. Later ones take precedence.

    Args:
        file: TOML or YAML, or a run's config.json, or None.
        overrides: for example `train.epochs=5`. The value is parsed as JSON if possible, and is text otherwise.
        options: top-level fields. None means not given.

    Raises:
        ConfigError: lists every problem found.
    """
    values = read_values(file) if file else {}
    for override in overrides or []:
        apply_override(values, override)
    for key, value in options.items():
        if value is not None:
            values[key] = value
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> PipelineConfig:
    """Validate a configuration given as plain values.

    Raises:
        ConfigError: lists every problem found.
    """
    try:
        config = PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(problem) for problem in error.errors())) from error
    if not NAME.fullmatch(config.artifact_name):
        raise ConfigError(f"name must be lower-case letters, digits, - and _, at most 64, got {config.artifact_name!r}")
    return config


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        model: Any = PipelineConfig
        for part in problem["loc"][:-1]:
            model = model.model_fields[part].annotation
        near = _nearest(str(problem["loc"][-1]), where.rpartition(".")[0], model)
        return f"unknown setting {where}" + (f"; did you mean {near}?" if near else "")
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):  # settings that contradict each other
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
    return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _nearest(name: str, section: str, model: Any) -> str:
    """The setting that was probably meant, with its sections: of the same section, or of that name in another one."""
    for other, field in PipelineConfig.model_fields.items():
        if name in getattr(field.annotation, "model_fields", ()):
            return f"{other}.{name}"
    near = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.5)
    return ".".join([*filter(None, [section]), *near]) if near else ""
