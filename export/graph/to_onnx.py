"""Write a checkpoint as one ONNX file under the graph contract.

One input `image`, uint8 [batch, H, W, 3]: RGB bytes at the model's resolution. Two outputs, float32 [batch, K]: `logits`,
already divided by the temperature, and `probabilities`, their softmax. Normalization is inside. Only the batch is free. With
`export.explain` there are two more outputs; see `export.graph.cam_outputs`.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from edgeline.export import file_names
from edgeline.export.graph.cam_outputs import add_outputs
from edgeline.export.graph.contract import IR_VERSION, check_graph
from edgeline.export.graph.opsets import newest_opset
from edgeline.export.graph.templates import Templates
from edgeline.pipeline.evaluation.metrics import temperature_of
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import CALIBRATION, Checkpoint, load_checkpoint
from edgeline.pipeline.models.devices import TRACING
from edgeline.pipeline.models.weights import TENSORS
from edgeline.pipeline.progress import waiting
from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ConfigError, ExportError
from edgeline.serve.preprocess import PreprocessSpec

GRAPHS = "graphs.sqlite"
"""File in the cache folder with the exported graphs of backbones."""


class CalibratedModel(nn.Module):
    """The network as it ships: uint8 pixels to calibrated probabilities and logits."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify uint8 (N, H, W, 3): probabilities and logits, float32 (N, K)."""
        # Contiguous, or the exporter carries the channels-last strides into the pooling and writes shape arithmetic.
        images_NCHW = image.permute(0, 3, 1, 2).contiguous().float()
        return self.classify(self.network.features(images_NCHW))

    def classify(self, features_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Classify the backbone's features, float32 (N, D): probabilities and logits, float32 (N, K)."""
        logits_NK = self.network.head(features_ND) / self.temperature
        return logits_NK.softmax(1), logits_NK


def build_export(run: Run, folder: Path) -> None:
    """Export a run's checkpoint, with the temperature that its evaluation reports, into the step's folder.

    Raises:
        ConfigError: the operator set is newer than what the oldest runtime supports.
        ExportError: see `export`.
    """
    opset, runtime = run.config.export.opset, run.config.export.min_runtime
    if opset > newest_opset(runtime):
        raise ConfigError(
            f"export.opset = {opset} is newer than what ONNX Runtime {runtime} supports ({newest_opset(runtime)}); lower it, "
            "or raise export.min_runtime"
        )
    network, checkpoint = load_checkpoint(run.step("train"))
    temperature = temperature_of(run.step("train") / CALIBRATION)
    with waiting("exporting to ONNX"):
        export(
            CalibratedModel(network, temperature),
            checkpoint.preprocess,
            folder / file_names.MODEL,
            GraphOptions(
                classes=len(checkpoint.labels),
                opset=opset,
                metadata=metadata_of(run, checkpoint, temperature),
                explain=run.config.export.explain,
            ),
            ContentCache(run.config.cache / GRAPHS) if checkpoint.has_frozen_backbone else None,
        )


def metadata_of(run: Run, checkpoint: Checkpoint, temperature: float) -> dict[str, str]:
    """The origin that an exported file states in its metadata; verification compares it with the run."""
    return {
        "edgeline.labels": "\n".join(checkpoint.labels),
        "edgeline.model": checkpoint.model,
        "edgeline.preprocess_sha256": checkpoint.preprocess.digest(),
        "edgeline.checkpoint_sha256": file_digest(run.step("train") / TENSORS),
        "edgeline.temperature": repr(temperature),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphOptions:
    """What an exported graph must have."""

    classes: int
    """K."""
    opset: int
    """Operator set of the default domain."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Written into the file's `metadata_props`."""
    explain: bool = False
    """Whether class activation maps and embeddings become outputs (`export.graph.cam_outputs`)."""


def export(
    deployed: CalibratedModel, spec: PreprocessSpec, path: Path, options: GraphOptions, cache: ContentCache | None = None
) -> None:
    """Write the ONNX file and check it against the contract.

    Args:
        deployed: the network with its temperature; evaluation mode is set here.
        spec: gives H and W.
        path: of the file.
        options: of the graph.
        cache: of exported backbones, for networks of which only the head changes. The file has the same bytes with and without.

    Raises:
        ConfigError: `explain` is set and the network does not support it.
        ExportError: the exporter cannot express the network, or its file breaks the contract.
    """
    shape = (2, spec.height, spec.width, 3)
    if cache is None:
        model = _convert(deployed, shape, options.opset)
    else:
        templates = Templates(cache, deployed.network, shape, options.opset)
        found = templates.find(deployed.network, deployed.temperature)
        if found is None:
            found = _convert(deployed, shape, options.opset)
            templates.keep(found, deployed.network, deployed.temperature)
        model = found
    for key, value in sorted(options.metadata.items()):
        model.metadata_props.add(key=key, value=value)
    if options.explain:
        model = add_outputs(model, spec.height, spec.width)
    path.write_bytes(model.SerializeToString(deterministic=True))
    check_graph(path.read_bytes(), spec, classes=options.classes, opset=options.opset)


def _convert(deployed: CalibratedModel, shape: tuple[int, ...], opset: int) -> onnx.ModelProto:
    """Export a network, traced with pixels of this shape."""
    deployed = deployed.eval().to(memory_format=torch.contiguous_format)
    example = torch.zeros(shape, dtype=torch.uint8)
    output = io.StringIO()
    try:
        with TRACING, redirect_stdout(output), redirect_stderr(output), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own internals
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=["probabilities", "logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
                custom_translation_table={torch.ops.aten.adaptive_avg_pool2d.default: _pooling(opset)},
                verbose=False,
            )
    except Exception as error:  # the exporter and its decompositions raise dozens of kinds
        cause = _first_cause(error)
        reason = cause if isinstance(cause, ExportError) else " ".join(str(cause).split())[:300]
        raise ExportError(f"PyTorch cannot export this network to ONNX: {reason}; choose another model") from error
    assert program is not None
    model = program.model_proto
    _strip(model)
    model.ir_version = IR_VERSION
    return model


def _first_cause(error: BaseException) -> BaseException:
    """The original error; the exporter wraps it in advice to its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _pooling(opset: int) -> Any:
    """Keep the pooling one operator: decomposed, it becomes a ReduceMean that quantizers and phones do not support.

    At a model's one resolution, adaptive pooling is global, the identity, or has a fixed window.
    """
    import onnxscript

    op = getattr(onnxscript, f"opset{opset}")

    def translate(x: Any, output_size: Sequence[int]) -> Any:
        observed, wanted = list(x.shape[2:]), list(output_size)
        if wanted == [1, 1]:
            return op.GlobalAveragePool(x)
        if observed == wanted:
            return op.Identity(x)
        window = [have // want for have, want in zip(observed, wanted, strict=True)]
        if observed != [size * want for size, want in zip(window, wanted, strict=True)]:
            raise ExportError(f"the network pools {observed} to {wanted}, with windows of different sizes")
        return op.AveragePool(x, kernel_shape=window, strides=window)

    return translate


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter recorded about the machine: stack traces contain local paths."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
        value.ClearField("doc_string")
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for whole in (model, model.graph):
        whole.ClearField("doc_string")
    model.producer_name = "edgeline"
    model.ClearField("producer_version")
