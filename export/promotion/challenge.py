"""Let a new version and the one in use answer the same images, through the files that ship."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeline.export.promotion.decision import Decision, PairedAnswers, decide
from edgeline.export.promotion.new_photos import InUse
from edgeline.pipeline.data.image_record import FILE_NAME as RECORD
from edgeline.pipeline.data.image_record import read_record
from edgeline.pipeline.data.samples import Prepared, Sample, map_ahead, read_pixels, read_prepared
from edgeline.pipeline.evaluation.report import FILE_NAME as EVALUATION
from edgeline.pipeline.evaluation.report import Evaluation
from edgeline.pipeline.runs.run import Run
from edgeline.serve.classifier import Classifier

COMPARED = ("float32", "int8")
"""Precisions that are compared, in ONNX files."""


def compare(run: Run, in_use: Path, new: Path) -> Decision:
    """Compare two versions, variant by variant, on the new version's test images that the one in use has not learned from.

    Only classes that both versions have are compared. A variant that only the version in use has keeps it in use, because a
    device may be running it.

    Args:
        run: of the new version.
        in_use: folder of the version in use.
        new: folder of the new version.

    Raises:
        DataError: an image has changed since it was prepared.
        EdgelineError: a version cannot be run.
    """
    samples = shared_test_images(read_prepared(run.step("prepare")), in_use)
    before, after = (Classifier.open(folder) for folder in (in_use, new))
    samples = [sample for sample in samples if sample.label in before.manifest.labels]
    names = [each.name for each in before.manifest.variants if each.format == "onnx" and each.precision in COMPARED]
    ours = {each.name for each in after.manifest.variants}
    missing = [name for name in names if name not in ours]
    answers = {
        name: PairedAnswers(
            truth=[sample.label for sample in samples],
            before=predict(Classifier.open(in_use, variant=name), samples),
            after=predict(Classifier.open(new, variant=name), samples),
            groups=[sample.group or sample.sha256 for sample in samples],
        )
        for name in names
        if name in ours
    }
    decision = decide(answers, run.config.promote)
    if missing:
        reason = f"the version in use has {', '.join(missing)}, and the new one does not; {decision.reason}"
        decision = decision.model_copy(update={"verdict": "worse", "promoted": False, "reason": reason})
    old, now = before.manifest.labels, after.manifest.labels
    return decision.model_copy(
        update={
            "new_classes": tuple(label for label in now if label not in old),
            "lost_classes": tuple(label for label in old if label not in now),
        }
    )


def shared_test_images(prepared: Prepared, in_use: Path) -> list[Sample]:
    """The test images of the new version that the version in use has not learned from.

    Raises:
        DataError: the version in use does not record its images.
    """
    record = read_record(in_use / RECORD)
    return [sample for sample in prepared.of("test") if sample.pixels not in record or not record[sample.pixels].learned]


def reference_of(in_use: Path) -> InUse:
    """The version in use, to check new photos with."""
    model = Classifier.open(in_use)
    evaluation = Evaluation.model_validate_json((in_use / EVALUATION).read_bytes())

    def classify(samples: Sequence[Sample]) -> np.ndarray:
        pixels = map_ahead(lambda sample: read_pixels(sample, model.manifest.preprocess), samples, ahead=32)
        return np.stack([model.probabilities(pixels_HW3[None])[0] for pixels_HW3 in pixels])

    return InUse(model.manifest.labels, np.array(evaluation.confusion), classify)


def predict(model: Classifier, samples: Sequence[Sample]) -> list[str]:
    """The most likely class of each image, one image at a time as on a device."""
    found = []
    for pixels_HW3 in map_ahead(lambda sample: read_pixels(sample, model.manifest.preprocess), samples, ahead=32):
        found.append(model.manifest.labels[int(model.probabilities(pixels_HW3[None])[0].argmax())])
    return found
