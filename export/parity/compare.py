"""Compare the outputs of two implementations of one network that should be equal.

Both probabilities and logits are compared: a confident network's probabilities are 0 and 1 to the last bit, which would hide a
fault.

Shapes: N images, K classes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from edgeline.export.parity.report import Comparison, Flip, ImageDifference
from edgeline.export.tolerances import MAX_SUM_ERROR, MIN_SPREAD
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.progress import track
from edgeline.serve.errors import VerificationError

WORST = 10
"""Images with the largest differences that a comparison lists."""


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network, or of its file, for N images: float32 (N, K) each."""

    probabilities_NK: np.ndarray
    logits_NK: np.ndarray

    @classmethod
    def join(cls, batches: Iterable[Sequence[np.ndarray]]) -> Self:
        """Concatenate batches of probabilities and logits."""
        probabilities, logits = zip(*batches, strict=True)
        return cls(np.concatenate(probabilities), np.concatenate(logits))

    def __getitem__(self, rows: slice | Sequence[int]) -> "Outputs":
        """The outputs of some of the images."""
        return Outputs(self.probabilities_NK[rows], self.logits_NK[rows])


def compare(
    names: Sequence[str],
    expected: Outputs,
    observed: Outputs,
    config: VerifyConfig,
    *,
    batch: int,
    reference: str = "PyTorch",
) -> Comparison:
    """Compare observed outputs with expected ones.

    Args:
        names: of the images.
        expected: outputs of PyTorch.
        observed: outputs of the file.
        config: the thresholds.
        batch: the batch size of the observed outputs, for the report.
        reference: what computed the expected outputs, for the report.

    Raises:
        VerificationError: their shapes differ.
    """
    for mine_NK, theirs_NK in zip(_arrays(expected), _arrays(observed), strict=True):
        if mine_NK.shape != theirs_NK.shape:
            raise VerificationError(f"batch {batch}: the file returns shape {theirs_NK.shape}, {reference} {mine_NK.shape}")
    expected_NK, observed_NK = expected.probabilities_NK, observed.probabilities_NK
    largest_logit = max(1.0, float(np.abs(np.nan_to_num(expected.logits_NK, posinf=0, neginf=0)).max()))
    difference_N = _differences(expected_NK, observed_NK)
    logit_difference_N = _differences(expected.logits_NK, observed.logits_NK) / largest_logit
    top_two_N2 = np.sort(np.nan_to_num(expected_NK), axis=1)[:, -2:]
    margin_N = top_two_N2[:, 1] - top_two_N2[:, 0]
    same_N = expected_NK.argmax(1) == observed_NK.argmax(1)
    clear_N = margin_N > config.margin

    problems = [
        f"{who} returns NaN or infinite probabilities or logits for {_first(names, broken_N)}"
        for who, outputs in ((reference, expected), ("the file", observed))
        if (broken_N := ~np.isfinite(np.hstack(_arrays(outputs))).all(1)).any()
    ]
    for what, values_N in (("probabilities", difference_N), ("logits, as shares of the largest,", logit_difference_N)):
        if (count := int((values_N > config.max_difference).sum())) > 0:
            problems.append(
                f"the {what} of {count} of {len(names)} images differ by more than {config.max_difference:g}, at most by "
                f"{values_N.max():.3g}"
            )
    if (count := int((~same_N & clear_N).sum())) > 0:
        problems.append(f"{count} images have another best class although {reference} is clear (margin over {config.margin:g})")
    problems += implausible(expected, observed, images=len(names))
    worst = np.argsort(-np.maximum(difference_N, logit_difference_N), kind="stable")[:WORST]
    flips = np.flatnonzero(~same_N)[: 10 * WORST]
    differences = [
        ImageDifference(image=name, difference=_finite(difference), logit_difference=_finite(logit_difference))
        for name, difference, logit_difference in zip(names, difference_N, logit_difference_N, strict=True)
    ]
    return Comparison(
        images=len(names),
        batch=batch,
        max_difference=_finite(difference_N.max()),
        max_logit_difference=_finite(logit_difference_N.max()),
        top1_agreement=float(same_N.mean()),
        top1_agreement_over_margin=float(same_N[clear_N].mean()) if clear_N.any() else 1.0,
        flips=tuple(Flip(**dict(differences[i]), margin=float(margin_N[i])) for i in flips.tolist()),
        worst=tuple(differences[i] for i in worst.tolist()),
        problems=tuple(problems),
    )


def implausible(expected: Outputs, observed: Outputs, *, images: int) -> list[str]:
    """Problems of outputs that no correct file has, however it rounds."""
    problems = []
    largest_logit = max(1.0, float(np.abs(np.nan_to_num(expected.logits_NK, posinf=0, neginf=0)).max()))
    if not (row_sums := np.abs(observed.probabilities_NK.sum(1) - 1)).max() < MAX_SUM_ERROR:
        problems.append(f"the file's probabilities do not sum to 1 (off by {row_sums.max():.3g}); is the softmax missing?")
    if images > 1 and np.ptp(np.nan_to_num(observed.logits_NK), axis=0).max() < MIN_SPREAD * largest_logit:
        problems.append("the file returns the same output for every image")
    return problems


def logit_difference(one: Outputs, other: Outputs) -> float:
    """The largest difference of any logit; infinite if one of the two is not finite."""
    with np.errstate(invalid="ignore"):
        return float(np.nan_to_num(np.abs(one.logits_NK - other.logits_NK), nan=np.inf).max())


def run_session(session: Any, pixels: Sequence[np.ndarray], batch: int) -> Outputs:
    """Run a loaded model over images at one batch size. The last batch is filled up with earlier images.

    Args:
        session: has `run` as ONNX Runtime's sessions have it.
        pixels: of each image, uint8 (H, W, 3).
        batch: images a call.

    Raises:
        VerificationError: the runtime raised an error.
    """
    filled = [pixels[i % len(pixels)] for i in range(math.ceil(len(pixels) / batch) * batch)]
    title = f"verifying: the file, batch {batch}"
    batches = track(in_batches(filled, batch), title, len(filled), step=batch)
    try:
        outputs = Outputs.join(session.run(["probabilities", "logits"], {"image": b_NHW3}) for b_NHW3 in batches)
    except Exception as error:  # its exceptions have no common base class
        reason = " ".join(str(error).split())[:300]
        raise VerificationError(f"the runtime cannot run the file at batch {batch}: {reason}") from error
    return outputs[: len(pixels)]


def in_batches(pixels: Sequence[np.ndarray], batch: int) -> Iterator[np.ndarray]:
    """Stack images, `batch` at a time: uint8 (N, H, W, 3)."""
    for start in range(0, len(pixels), batch):
        yield np.stack(pixels[start : start + batch])


def raise_problems(problems: Sequence[str], comparisons: Sequence[Comparison]) -> None:
    """Raise the problems of a verification as one error.

    Args:
        problems: empty if the file passed.
        comparisons: one for each batch size.

    Raises:
        VerificationError: there are problems; the message names the worst images.
    """
    if not problems:
        return
    # Every batch size runs the same images; an image's largest difference counts.
    largest: dict[str, float] = {}
    for entry in (entry for comparison in comparisons for entry in comparison.worst):
        largest[entry.image] = max(largest.get(entry.image, 0.0), entry.difference, entry.logit_difference)
    worst = sorted(largest, key=lambda name: -largest[name])[:3]
    raise VerificationError(
        f"the exported file does not compute what PyTorch computes: {'; '.join(problems)}; "
        f"worst images: {', '.join(f'{name} ({largest[name]:.3g})' for name in worst)}; nothing is published"
    )


def _arrays(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    return outputs.probabilities_NK, outputs.logits_NK


def _differences(expected_NK: np.ndarray, observed_NK: np.ndarray) -> np.ndarray:
    """The largest of each row; infinite if one of the two is not finite."""
    with np.errstate(invalid="ignore"):
        difference_N = np.abs(expected_NK - observed_NK).max(1)
    return np.asarray(np.nan_to_num(difference_N, nan=np.inf, posinf=np.inf))


def _first(names: Sequence[str], chosen_N: np.ndarray) -> str:
    found = [names[i] for i in np.flatnonzero(chosen_N).tolist()]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _finite(value: Any) -> float:
    """Replace infinity, which JSON does not have, by the largest double."""
    return float(min(value, np.finfo(np.float64).max))
