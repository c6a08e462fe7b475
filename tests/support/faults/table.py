"""Every planted fault: what it is, what must catch it, and the words of the message that name its cause.

Write the page with `python -m tests.support.faults.table > docs/faults.md`.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.faults import artifact, graph, preprocessing, quantization, weights

AREAS = ("graph", "weights", "preprocessing", "labels", "quantization parameters", "metadata", "files")
GATES = {
    "reference": "`edgeline verify`, on the reference",
    "int8": "`edgeline verify`, on the int8 variant",
    "preprocessing_fingerprint": "`edgeline verify`, on the pixels of training time",
    "check": "`edgeline check`",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One planted fault."""

    area: str
    plant: Callable[..., Any]
    gate: str
    """A key of `GATES`."""
    words: str
    """Words of the message that must name the cause; `…` stands for anything."""
    on_device: bool = True
    """Of a fault of the reference or of preprocessing: whether a device's golden samples must reveal it too."""

    @property
    def name(self) -> str:
        return str(self.plant.__name__).replace("_", " ")

    @property
    def pattern(self) -> str:
        return re.sub(r"(\\ )?…(\\ )?", ".*", re.escape(self.words))


DIFFERS = "does not compute what PyTorch computes: …"
FIRST = DIFFERS + "the first of 50 layers to diverge is "
PIXELS = "preprocessing differs from that at training time: …"
INT8 = "the int8 file's quantization is wrong: "
BLOCK = quantization.BLOCK

FAULTS: tuple[Fault, ...] = (
    *(
        Fault("graph", plant, "reference", words)
        for plant, words in (
            (graph.rows_for_columns, FIRST + "backbone.conv_stem"),
            (graph.symmetric_padding, FIRST + "backbone.conv_stem"),
            (graph.activations_without_their_upper_bound, FIRST + "backbone.blocks.0.0.conv_dw"),
            (graph.maximum_for_average, FIRST + "head.1"),
            (graph.batch_norm_in_training_mode, FIRST + "head.1"),
            (graph.no_softmax, "do not sum to 1 … is the softmax missing"),
            (graph.outputs_swapped, "do not sum to 1 … is the softmax missing"),
            (graph.temperature_ignored, DIFFERS),
            (graph.temperature_ignored_in_the_logits_only, DIFFERS),
        )
    ),
    Fault("graph", graph.outputs_that_depend_on_the_batch, "reference", DIFFERS, on_device=False),
    Fault("graph", graph.softmax_over_the_batch, "reference", "do not sum to 1", on_device=False),
    Fault("graph", graph.the_batch_fixed, "reference", "image has the fixed batch 1, it must be free"),
    Fault("graph", graph.a_batch_that_the_exporter_froze_inside, "reference", "Reshape", on_device=False),
    Fault("graph", graph.the_batch_fixed, "int8", "image has the fixed batch 1, it must be free"),
    Fault("graph", graph.no_softmax, "int8", "do not sum to 1 … is the softmax missing"),
    *(
        Fault("weights", plant, "reference", words)
        for plant, words in (
            (weights.blue_for_red, FIRST + "backbone.conv_stem"),
            (weights.no_mean, FIRST + "backbone.conv_stem"),
            (weights.no_std, FIRST + "backbone.conv_stem"),
            (weights.the_mean_and_std_of_other_weights, FIRST + "backbone.conv_stem"),
            (weights.head_shifted_by_one, FIRST + "head.1"),
            (weights.head_of_an_older_run, FIRST + "head.1"),
            (weights.the_sign_bit_of_one_weight, FIRST + "backbone.conv_stem"),
            (weights.weights_rounded_to_half_precision, FIRST + "backbone.conv_stem"),
            (
                weights.the_same_output_for_every_image,
                "returns the same output for every image…" + FIRST[len(DIFFERS) :] + "head.1",
            ),
            (weights.a_weight_that_is_not_a_number, "weights that are not finite: network.head.1.weight"),
            (weights.weights_in_another_file, "weights are in another file: network.head.1.weight"),
        )
    ),
    Fault(
        "weights",
        weights.one_depthwise_channel_off_by_a_twentieth,
        "reference",
        FIRST + "backbone.blocks.4.0.conv_dw",
        on_device=False,
    ),
    *(
        Fault("preprocessing", plant, "preprocessing_fingerprint", PIXELS + words)
        for plant, words in (
            (preprocessing.ignored_exif, "exif_rotated … rotated or mirrored, as if its EXIF orientation were ignored"),
            (preprocessing.swapped_red_and_blue, "scene … red and blue are swapped"),
            (preprocessing.bilinear_for_bicubic, "scene … the crop and the resize filter"),
            (preprocessing.nearest_for_bicubic, "huge … the crop and the resize filter"),
            (preprocessing.no_antialias, "huge … the crop and the resize filter"),
            (preprocessing.squashed_without_a_crop, "scene … the crop and the resize filter"),
            (preprocessing.the_whole_shorter_side, "scene … the crop and the resize filter"),
            (preprocessing.crop_off_by_one_pixel, "scene … the crop and the resize filter"),
        )
    ),
    Fault(
        "preprocessing", preprocessing.resized_before_the_crop, "preprocessing_fingerprint", PIXELS + "scene", on_device=False
    ),
    Fault("preprocessing", preprocessing.shrunk_in_two_steps, "preprocessing_fingerprint", PIXELS + "huge", on_device=False),
    Fault("preprocessing", preprocessing.clipped_16_bits, "preprocessing_fingerprint", PIXELS + "gray_16_bit", on_device=False),
    Fault("preprocessing", preprocessing.dropped_alpha, "preprocessing_fingerprint", PIXELS + "alpha", on_device=False),
    Fault("preprocessing", artifact.another_filter, "check", "preprocessing on this machine produces different pixels"),
    Fault("preprocessing", artifact.another_crop, "check", "preprocessing on this machine produces different pixels"),
    Fault("preprocessing", artifact.pictures_as_blue_green_red, "check", "preprocess: color must be 'RGB', got 'BGR'"),
    *(
        Fault("labels", plant, "check", words)
        for plant, words in (
            (artifact.labels_shifted_by_one, "was exported with other labels than those of the manifest, or in another order"),
            (artifact.labels_shifted_by_one_and_the_models_own_removed, "not in the model's order"),
            (artifact.a_labels_file_in_another_order, "labels.txt does not list the labels of the manifest"),
            (artifact.a_label_twice, "duplicate labels: bark"),
            (artifact.a_label_too_many, "the manifest specifies"),
        )
    ),
    *(
        Fault("quantization parameters", plant, "int8", words)
        for plant, words in (
            (
                quantization.an_activations_zero_point_off_by_one,
                INT8 + "hardtanh_5 is quantized from … zero point 1), its Clip is bounded by 0 and 6",
            ),
            (
                quantization.an_activations_scale_doubled,
                INT8 + "hardtanh_5 is quantized from 0 to … its Clip is bounded by 0 and 6",
            ),
            (
                quantization.a_zero_point_that_differs_between_write_and_read,
                INT8 + "getitem_141_DequantizeLinear reads … with zero point",
            ),
            (
                quantization.a_scale_that_differs_between_write_and_read,
                INT8 + "getitem_141_DequantizeLinear reads … with scale",
            ),
            (quantization.a_convolutions_output_without_its_scale, "Node (getitem_141_DequantizeLinear)'s input 1"),
            (quantization.a_scale_that_is_not_a_number, "weights that are not finite: hardtanh_5_scale"),
            (
                quantization.per_channel_scales_permuted,
                INT8 + f"{BLOCK}.conv_dw.weight … their scales are another channel's each",
            ),
            (quantization.weights_scale_doubled, INT8 + f"{BLOCK}.conv_pw.weight … their scale is 2 times what fits"),
            (quantization.the_scale_of_another_layer, INT8 + "network.backbone.blocks.4.1.conv_pw.weight … their scale is"),
            (quantization.integers_rolled, INT8 + f"{BLOCK}.conv_pw.weight … other weights, or in another order"),
            (quantization.integers_of_the_head_rolled, INT8 + "network.head.1.weight … other weights, or in another order"),
            (quantization.integers_of_a_layer_all_zero, INT8 + "network.backbone.conv_head.weight … other weights"),
            (quantization.asymmetric_weights, INT8 + f"{BLOCK}.conv_dw.weight has zero point 3, int8 weights are symmetric"),
            (
                quantization.the_scale_of_a_bias_doubled,
                INT8 + f"the bias of … ({BLOCK}.conv_dw.weight_bias) has 2 times the scale",
            ),
            (quantization.biases_of_other_channels, "layers to diverge is backbone.blocks.4.0.conv_dw"),
            (
                quantization.the_input_zero_point_128_for_127,
                INT8 + "the image's bytes are read with zero point 128 … mean 127",
            ),
            (quantization.the_input_scale_of_other_weights, INT8 + "the image's bytes are read with … scale 0.01735"),
            (
                quantization.softmax_quantized,
                INT8 + "fault_real is quantized (fault_Dequantize); temperature and softmax stay float",
            ),
        )
    ),
    *(
        Fault("metadata", plant, "check", words)
        for plant, words in (
            (artifact.a_newer_schema, "manifest.json has schema 'edgeline.artifact/2'"),
            (artifact.a_variant_that_names_another_file, "variant onnx-fp32: model.onxx is not among the files"),
            (artifact.an_accuracy_that_is_not_a_number, "it contains NaN, which is not valid JSON"),
            (artifact.a_size_that_is_not_the_models, "the manifest specifies …240, 240, 3"),
            (artifact.an_unlimited_tolerance, "golden/golden.json cannot be read: tolerance must be a number"),
        )
    ),
    *(
        Fault("files", plant, "check", words)
        for plant, words in (
            (artifact.one_bit, "model.onnx: … bytes with sha256 … copy the artifact again"),
            (artifact.a_truncated_model, "model.onnx: 1,000 bytes, the manifest has"),
            (artifact.a_file_that_is_missing, "card.md: No such file"),
            (artifact.a_file_too_many, "has files that are not in its manifest: golden/extra.png"),
            (artifact.a_link_in_place_of_a_file, "model.onnx is a link; an artifact has only plain files"),
            (artifact.two_golden_pictures_swapped, "preprocessing on this machine produces different pixels"),
            (artifact.the_model_of_an_older_run, "the model or the runtime computes something else on this machine"),
        )
    ),
)

QUICK = frozenset(
    fault.name
    for fault in FAULTS
    if fault.gate in ("preprocessing_fingerprint", "check")
    or fault.plant
    in (
        graph.rows_for_columns,
        graph.outputs_that_depend_on_the_batch,
        graph.temperature_ignored,
        graph.no_softmax,
        graph.the_batch_fixed,
        weights.the_sign_bit_of_one_weight,
        weights.head_of_an_older_run,
        weights.a_weight_that_is_not_a_number,
        weights.weights_in_another_file,
        quantization.an_activations_zero_point_off_by_one,
        quantization.a_scale_that_is_not_a_number,
        quantization.per_channel_scales_permuted,
        quantization.integers_rolled,
        quantization.the_scale_of_a_bias_doubled,
    )
)
"""Names of the faults that `make test` plants; `make long` plants the others, which take a second each."""


def markdown() -> str:
    """The page."""
    counts = Counter(fault.area for fault in FAULTS)
    lines = [
        "# Planted faults\n",
        "Written by `python -m tests.support.faults.table > docs/faults.md`; do not edit by hand.\n",
        f"{len(FAULTS)} faults are planted, one at a time, in the results of a correct run: "
        + ", ".join(f"{counts[area]} in {area}" for area in AREAS)
        + ". `tests/export/verification/test_planted_faults.py` runs the check that must catch each and asserts the words of "
        "the message that name the cause (`…` stands for figures and other text). Results without a fault pass the same checks "
        "there.\n",
        "| area | fault | caught by | words of the message |\n|---|---|---|---|",
        *(f"| {fault.area} | {fault.name} | {GATES[fault.gate]} | {fault.words} |" for fault in FAULTS),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
