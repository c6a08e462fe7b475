"""Faults of the reference's numbers."""

import numpy as np
import onnx
from onnx import TensorProto

from tests.support.faults.surgery import HEAD, Graph, initializer, rewrite


def blue_for_red(graph: Graph) -> None:
    rewrite(graph, "network.backbone.conv_stem.weight", lambda w: w[:, ::-1])


def no_mean(graph: Graph) -> None:
    rewrite(graph, "network.mean", np.zeros_like)


def no_std(graph: Graph) -> None:
    rewrite(graph, "network.std", np.ones_like)


def the_mean_and_std_of_other_weights(graph: Graph) -> None:
    rewrite(graph, "network.mean", lambda _: 255 * np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
    rewrite(graph, "network.std", lambda _: 255 * np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))


def head_shifted_by_one(graph: Graph) -> None:
    rewrite(graph, HEAD, lambda w: np.roll(w, 1, axis=0))
    rewrite(graph, "network.head.1.bias", lambda b: np.roll(b, 1))


def head_of_an_older_run(graph: Graph) -> None:
    noise = np.random.default_rng(0)
    rewrite(graph, HEAD, lambda w: w + 0.05 * w.std() * noise.normal(size=w.shape))


def one_depthwise_channel_off_by_a_twentieth(graph: Graph) -> None:
    def scale(w: np.ndarray) -> np.ndarray:
        w[3] *= 1.05
        return w

    rewrite(graph, "network.backbone.blocks.4.0.conv_dw.weight", scale)


def the_sign_bit_of_one_weight(graph: Graph) -> None:
    def flip(w: np.ndarray) -> np.ndarray:
        w.view(np.uint32).reshape(-1)[np.abs(w).argmax()] ^= 1 << 31
        return w

    rewrite(graph, "network.backbone.conv_stem.weight", flip)


def weights_rounded_to_half_precision(graph: Graph) -> None:
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
            rewrite(graph, tensor.name, lambda w: w.astype(np.float16))


def the_same_output_for_every_image(graph: Graph) -> None:
    rewrite(graph, HEAD, np.zeros_like)


def a_weight_that_is_not_a_number(graph: Graph) -> None:
    def spoil(w: np.ndarray) -> np.ndarray:
        w[0, 0] = np.nan
        return w

    rewrite(graph, HEAD, spoil)


def weights_in_another_file(graph: Graph) -> None:
    onnx.external_data_helper.set_external_data(initializer(graph, HEAD), "model.data")
    initializer(graph, HEAD).ClearField("raw_data")
