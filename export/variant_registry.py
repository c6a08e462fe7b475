"""Every variant of a model that edgeline can make, and every format that another runtime's converter writes.

To add an export format, edit five files: a `Converter` and its `VariantSpec`s here; the converter script in
`export/converters/`; the runtime in `edgeline.serve.runtime.backends`; the variants' names in `edgeline.pipeline.config`; an
extra in `pyproject.toml`. A test fails while one of them is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeline.export import file_names
from edgeline.export.tolerances import PRECISIONS, Precision

Check = Literal[
    "onnx_graph",
    "int8_parameters",
    "metadata",
    "saturation",
    "coreml_package",
    "batch_sizes",
    "threads",
    "similarity",
    "activation_maps",
    "distribution",
]
"""Names of `edgeline.export.verification.variant_checks.CHECKS`."""
OUTPUTS: tuple[Check, ...] = ("batch_sizes", "threads", "similarity")


SourceName = Literal["model.onnx", "program.pt2", "calibration.npy"]
"""What a format is converted from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Converter:
    """How a format of another runtime is written: a script in a separate environment."""

    script: str
    """A module that is run as a file."""
    sources: tuple[SourceName, ...]
    """What the script reads: the ONNX file of the same precision, the PyTorch program (`torch.export`, one image at a time), or
    calibration images, uint8 (N, H, W, 3)."""
    packages: tuple[str, ...]
    """What the environment holds, to convert and to run. The first is the converter's own."""


CONVERTERS = {
    "openvino": Converter(
        script="edgeline.export.converters.to_openvino",
        sources=("model.onnx",),
        packages=("openvino==2026.4.1", "numpy==2.4.6", "pillow==13.0.0"),
    ),
    "litert": Converter(
        script="edgeline.export.converters.to_litert",
        sources=("program.pt2", "calibration.npy"),
        packages=(
            "litert-torch==0.10.0",
            "ai-edge-litert==2.3.0",
            "ai-edge-quantizer==0.10.0",
            "torch==2.14.1",
            "numpy==2.4.6",
            "pillow==13.0.0",
        ),
    ),
    "executorch": Converter(
        script="edgeline.export.converters.to_executorch",
        sources=("program.pt2", "calibration.npy"),
        packages=("executorch==1.5.1", "torch==2.15.0", "numpy==2.4.6", "pillow==13.0.0"),
    ),
    "coreml": Converter(
        script="edgeline.export.converters.to_coreml",
        sources=("program.pt2",),
        packages=("coremltools==9.0", "torch==2.15.0", "numpy==2.4.6", "pillow==13.0.0"),
    ),
}
"""By format. ONNX and ORT files are written here, by ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """What a variant is, whatever the model, and what the release gate checks of it."""

    name: str
    file: str
    format: str
    """A key of `edgeline.serve.runtime.backends.BACKENDS`."""
    precision: str
    """A key of `PRECISIONS`."""
    checks: tuple[Check, ...]
    """In the order in which they run."""

    @property
    def thresholds(self) -> Precision:
        """The thresholds that apply to it."""
        return PRECISIONS[self.precision]

    @property
    def converter(self) -> Converter | None:
        """What writes it; None if ONNX Runtime does."""
        return CONVERTERS.get(self.format)

    @property
    def reads_int8_onnx(self) -> bool:
        """Whether it is made from the int8 ONNX file, which must therefore exist."""
        return self.precision == "int8" and (self.converter is None or "model.onnx" in self.converter.sources)


def _by_name(specs: Sequence[VariantSpec]) -> dict[str, VariantSpec]:
    return {spec.name: spec for spec in specs}


REFERENCE = VariantSpec("onnx-fp32", file_names.MODEL, "onnx", "float32", ())
"""The float32 ONNX file, from which the variants are made. It has checks of its own (`export.verification.verify`)."""
VARIANTS = _by_name(
    (
        VariantSpec(
            "onnx-int8",
            "model.int8.onnx",
            "onnx",
            "int8",
            ("onnx_graph", "int8_parameters", "metadata", "saturation", *OUTPUTS, "activation_maps", "distribution"),
        ),
        VariantSpec(
            "onnx-fp16",
            "model.fp16.onnx",
            "onnx",
            "float16 weights",
            ("onnx_graph", "metadata", *OUTPUTS, "activation_maps", "distribution"),
        ),
        VariantSpec("ort-fp32", "model.ort", "ort", "float32", ("metadata", *OUTPUTS, "activation_maps", "distribution")),
        VariantSpec("ort-int8", "model.int8.ort", "ort", "int8", ("metadata", *OUTPUTS, "activation_maps", "distribution")),
        VariantSpec("openvino-fp32", "model.xml", "openvino", "float32", (*OUTPUTS, "distribution")),
        VariantSpec("openvino-int8", "model.int8.xml", "openvino", "int8", (*OUTPUTS, "distribution")),
        VariantSpec("litert-fp32", "model.tflite", "litert", "float32", (*OUTPUTS, "distribution")),
        VariantSpec("litert-int8", "model.int8.tflite", "litert", "int8", (*OUTPUTS, "distribution")),
        VariantSpec("executorch-fp32", "model.pte", "executorch", "float32", (*OUTPUTS, "distribution")),
        VariantSpec("executorch-int8", "model.int8.pte", "executorch", "int8", (*OUTPUTS, "distribution")),
        VariantSpec(
            "coreml-fp16",
            "model.mlpackage/Manifest.json",
            "coreml",
            "float16",
            ("coreml_package", *OUTPUTS, "distribution"),
        ),
    )
)
"""By name, as `export.variants` in the settings lists them."""
