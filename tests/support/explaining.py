"""A small artifact with class activation maps that can be computed by hand: colors from the mean of 3 x 4 positions."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeline.export.graph.cam_outputs import add_outputs
from edgeline.serve.runtime.session import create_session

ROWS, COLUMNS, CELL = 3, 4, 4
WEIGHTS_CK = np.array([[8, -4, -4, -6], [-4, 8, -4, -6], [-4, -4, 8, -6]], np.float32)
BIAS_K = np.array([0, 0, 0, 2], np.float32)
TEMPERATURE = np.array(0.8, np.float32)


def mapped_model() -> onnx.ModelProto:
    """The average of the mean color at each position, and one linear layer: such a network without its convolutions."""
    classes = len(BIAS_K)
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "scale"], ["levels01"]),
        helper.make_node("Transpose", ["levels01"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["channels"], ["map"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["sums"], transB=1),
        helper.make_node("Div", ["sums", "temperature"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colors by place",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", ROWS * CELL, COLUMNS * CELL, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes]) for name in ("probabilities", "logits")],
        [
            numpy_helper.from_array(np.array(255, np.float32), "scale"),
            numpy_helper.from_array(np.ascontiguousarray(WEIGHTS_CK.T), "weights"),
            numpy_helper.from_array(BIAS_K, "bias"),
            numpy_helper.from_array(TEMPERATURE, "temperature"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_hand(pixels_HW3: np.ndarray) -> np.ndarray:
    """The activation maps of one image, float64 (K, h, w)."""
    cells = pixels_HW3.reshape(ROWS, CELL, COLUMNS, CELL, 3).mean((1, 3)) / 255
    return np.moveaxis((cells @ WEIGHTS_CK.astype(np.float64) + BIAS_K) / TEMPERATURE, -1, 0)


def explain_itself(folder: Path, seal: Callable[..., Path], model: onnx.ModelProto | None = None) -> Path:
    """Replace the model of an artifact by one with class activation maps, and its golden samples."""
    model = model or add_outputs(mapped_model(), ROWS * CELL, COLUMNS * CELL)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    session = create_session(data, threads=1)
    golden = json.loads((folder / "golden" / "golden.json").read_text())
    features = []
    for sample in golden["samples"]:
        with Image.open(folder / sample["pixels"]) as picture:
            pixels_1HW3 = np.asarray(picture)[None]
        [probabilities_K], [logits_K], [embedding_C] = session.run(
            ["probabilities", "logits", "embedding"], {"image": pixels_1HW3}
        )
        sample |= {"probabilities": probabilities_K.tolist(), "logits": logits_K.tolist()}
        features.append(embedding_C.astype(np.float64))
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    held = {"schema": "edgeline.embedding/1", "images": len(features)}
    held |= {"mean": np.mean(features, 0).tolist(), "variance": np.var(features, 0).tolist()}
    (folder / "embedding.json").write_text(json.dumps(held))
    outputs = [{"name": name, "dtype": "float32", "shape": ["batch", 4]} for name in ("probabilities", "logits")]
    outputs += [
        {"name": "evidence", "dtype": "float32", "shape": ["batch", 4, ROWS, COLUMNS]},
        {"name": "embedding", "dtype": "float32", "shape": ["batch", 3]},
    ]
    return seal(folder, outputs=outputs)
