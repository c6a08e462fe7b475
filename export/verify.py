"""The gate: does the exported file give what the model gives, on the path that ships?

Both sides start from an image file's bytes. PyTorch's is `serve.preprocess` and the checkpoint's network in evaluation
mode; the other is `serve.preprocess` and ONNX Runtime with the session settings of `serve.runtime`, at batch 1, an odd
batch and the largest. The images are the user's held-out ones and a hard set. Every probability is compared. What fails
raises; nothing that was not verified can be published, because publishing asks for this step's receipt.

Shapes: N images, H x W the model's input, K classes.
"""

import hashlib
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export import files
from export.graph import check_graph
from export.to_onnx import Deployed
from pipeline.checkpoint import load_checkpoint
from pipeline.config import VerifyConfig
from pipeline.evaluate import read_evaluation
from pipeline.features import CPU_BATCH
from pipeline.hard_set import WITNESS, check_witness, hard_set
from pipeline.metrics import wilson_interval
from pipeline.progress import track
from pipeline.run import Run
from pipeline.samples import ADMITTED, Sample, map_ahead, read_image, read_prepared
from pipeline.steps import digest_of, write_json
from serve.errors import VerificationError
from serve.latency import measure
from serve.preprocess import PreprocessSpec, preprocess
from serve.runtime import SETTINGS, create_session, load_onnxruntime, usable_cores

MIN_SPREAD = 1e-4
"""A model whose probabilities move less than this over all images answers without looking."""
WORST = 10


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison of two sets of probabilities found. Names are of images."""

    images: int
    batch: int
    max_difference: float
    top1_agreement: float
    """Share of all images whose best class is the same."""
    top1_agreement_over_margin: float
    """The same over the images whose best two classes PyTorch keeps apart by more than the margin."""
    flips: tuple[dict[str, Any], ...]
    """Images with another best class, with the margin between PyTorch's best two."""
    worst: tuple[dict[str, Any], ...]
    """Images with the largest difference."""
    problems: tuple[str, ...]


def build_verification(run: Run, folder: Path) -> None:
    """Verify a run's exported file against its checkpoint, into the step's folder.

    `verification.json` is written whether it passes or not; a failure keeps the folder under its `.partial` name.

    Raises:
        VerificationError: the file does not give what the model gives; the message names the worst images.
    """
    network, checkpoint = load_checkpoint(run.step("train"))
    evaluation = read_evaluation(run.step("evaluate"))
    onnx_path = run.step("export") / files.MODEL
    prepared = read_prepared(run.step("prepare"))
    samples = choose_samples([*prepared.of("test"), *prepared.of("val")], run.config.verify.images)
    report = verify(
        Deployed(network, evaluation.calibration.temperature),
        onnx_path.read_bytes(),
        checkpoint.preprocess,
        samples,
        run.config.verify,
        witness=run.step("train") / WITNESS,
    )
    write_json(folder / files.VERIFICATION, report)
    raise_problems(report)


def choose_samples(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Take at most that many samples, test before validation, spread over the classes by content."""
    chosen = sorted(samples, key=lambda s: (s.split != "test", digest_of([s.sha256])))
    return chosen[:most]


def verify(
    deployed: Deployed,
    model: bytes,
    spec: PreprocessSpec,
    samples: Sequence[Sample],
    config: VerifyConfig,
    *,
    witness: Path | None = None,
) -> dict[str, Any]:
    """Compare an ONNX file with a PyTorch network from image bytes to probabilities.

    Args:
        deployed: the network with its temperature; evaluation mode is set here.
        model: the ONNX file's bytes.
        spec: the preprocessing of both.
        samples: held-out images.
        config: the bars.
        witness: the hard set's pixels at training time; checked where given.

    Returns:
        The report that becomes `verification.json`; `passed` says whether all bars were held.

    Raises:
        ExportError: the file breaks the graph contract, so it is not run at all.
        VerificationError: preprocessing is not what it was at training.
    """
    classes = deployed.network.classifier.out_features
    check_graph(model, spec, classes=classes)
    pixel_drift = check_witness(witness, spec) if witness is not None else None
    names = [*(f"hard:{name}" for name in hard_set()), *(sample.name for sample in samples)]
    expected_NK, pixels = run_pytorch(deployed, spec, samples)
    session = create_session(model)
    comparisons = []
    for batch in (1, config.odd_batch, config.max_batch):
        observed_NK = run_session(session, pixels, batch)
        comparisons.append(compare(names, expected_NK, observed_NK, config, batch=batch))
    problems = [f"batch {c.batch}: {problem}" for c in comparisons for problem in c.problems]
    # The samples follow the hard set; only they have labels.
    own_NK = observed_NK[len(hard_set()) :]
    tested = [(sample, row_K) for sample, row_K in zip(samples, own_NK, strict=True) if sample.split == "test"]
    correct = sum(int(row_K.argmax()) == sample.index for sample, row_K in tested)
    return {
        "schema": "edgeline.verification/1",
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "passed": not problems,
        "problems": problems,
        "bars": {"max_difference": config.max_difference, "margin": config.margin, "top1_agreement_over_margin": 1.0},
        "images": {"held_out": len(samples), "hard_set": len(hard_set())},
        "test_accuracy": None if not tested else _accuracy(correct, len(tested)),
        "max_difference": max(c.max_difference for c in comparisons),
        "top1_agreement": min(c.top1_agreement for c in comparisons),
        "pixel_drift_since_training": pixel_drift,
        "comparisons": [asdict(c) for c in comparisons],
        "latency": asdict(measure(session, hard_set()["scene"], spec)),
        "machine": machine(),
    }


def raise_problems(report: dict[str, Any]) -> None:
    """Turn a failed report into an error.

    Raises:
        VerificationError: the report has problems.
    """
    if report["passed"]:
        return
    worst = [f"{entry['image']} ({entry['difference']:.3g})" for entry in report["comparisons"][0]["worst"][:3]]
    raise VerificationError(
        f"the exported file does not give what PyTorch gives: {'; '.join(report['problems'])}; "
        f"worst images: {', '.join(worst)}; nothing is published"
    )


def run_pytorch(deployed: Deployed, spec: PreprocessSpec, samples: Sequence[Sample]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Preprocess the hard set and the samples, and run PyTorch on them.

    Returns:
        float32 probabilities (N, K), and each image's pixels, uint8 (H, W, 3).
    """
    deployed.eval()
    readers: list[Callable[[], bytes]] = [lambda data=data: data for data in hard_set().values()]  # type: ignore[misc]
    readers += [lambda sample=sample: read_image(sample) for sample in samples]  # type: ignore[misc]
    pixels = list(map_ahead(lambda read: preprocess(read(), spec, ADMITTED), readers, ahead=64))
    rows = []
    batches = track(_batches(pixels, CPU_BATCH), "verifying: PyTorch", len(pixels), step=CPU_BATCH)
    with torch.inference_mode():
        for batch_NHW3 in batches:
            rows.append(deployed(torch.from_numpy(batch_NHW3))[0].numpy())
    return np.concatenate(rows), pixels


def run_session(session: Any, pixels: Sequence[np.ndarray], batch: int) -> np.ndarray:
    """Run ONNX Runtime over images at one batch size: float32 probabilities (N, K)."""
    title = f"verifying: ONNX Runtime, batch {batch}"
    batches = track(_batches(pixels, batch), title, len(pixels), step=batch)
    try:
        return np.concatenate([session.run(["probabilities"], {"image": b_NHW3})[0] for b_NHW3 in batches])
    except Exception as error:  # its exceptions share no base class of their own
        reason = " ".join(str(error).split())[:300]
        raise VerificationError(f"ONNX Runtime cannot run the file at batch {batch}: {reason}") from error


def compare(
    names: Sequence[str], expected_NK: np.ndarray, observed_NK: np.ndarray, config: VerifyConfig, *, batch: int
) -> Comparison:
    """Hold observed probabilities against expected ones.

    Args:
        names: of the images.
        expected_NK: what PyTorch gave.
        observed_NK: what is to be judged.
        config: the bars.
        batch: the batch size of the observed ones, for the report.
    """
    if expected_NK.shape != observed_NK.shape:
        raise VerificationError(f"batch {batch}: the file gives the shape {observed_NK.shape}, PyTorch {expected_NK.shape}")
    problems = [
        f"{who} gives NaN or infinite probabilities for {_first(names, broken_N)}"
        for who, values_NK in (("PyTorch", expected_NK), ("the file", observed_NK))
        if (broken_N := ~np.isfinite(values_NK).all(1)).any()
    ]
    difference_N = np.nan_to_num(np.abs(expected_NK - observed_NK).max(1), nan=np.inf)
    top_two_N2 = np.sort(np.nan_to_num(expected_NK), axis=1)[:, -2:]
    margin_N = top_two_N2[:, 1] - top_two_N2[:, 0]
    same_N = expected_NK.argmax(1) == observed_NK.argmax(1)
    clear_N = margin_N > config.margin
    if (count := int((difference_N > config.max_difference).sum())) > 0:
        problems.append(
            f"{count} of {len(names)} images differ by over {config.max_difference:g}, the most by {difference_N.max():.3g}"
        )
    if (count := int((~same_N & clear_N).sum())) > 0:
        problems.append(f"{count} images have another best class although PyTorch is clear (margin over {config.margin:g})")
    if not (row_sums := np.abs(observed_NK.sum(1) - 1)).max() < 1e-3:
        problems.append(f"the file's probabilities do not sum to 1 (off by {row_sums.max():.3g}); is the softmax missing?")
    if np.isfinite(observed_NK).all() and len(names) > 1 and np.ptp(observed_NK, axis=0).max() < MIN_SPREAD:
        problems.append("the file gives the same answer for every image")
    worst = np.argsort(-difference_N, kind="stable")[:WORST]
    flips = np.flatnonzero(~same_N)[: 10 * WORST]
    return Comparison(
        images=len(names),
        batch=batch,
        max_difference=_finite(difference_N.max()),
        top1_agreement=float(same_N.mean()),
        top1_agreement_over_margin=float(same_N[clear_N].mean()) if clear_N.any() else 1.0,
        flips=tuple(
            {"image": names[int(i)], "margin": float(margin_N[i]), "difference": _finite(difference_N[i])} for i in flips
        ),
        worst=tuple({"image": names[int(i)], "difference": _finite(difference_N[i])} for i in worst),
        problems=tuple(problems),
    )


def machine() -> dict[str, Any]:
    """Where and with what figures were taken."""
    ort = load_onnxruntime()
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": ort.__version__,
        "session": {"graph_optimization": "all", "providers": ["CPUExecutionProvider"], **SETTINGS},
    }


def _batches(pixels: Sequence[np.ndarray], batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(pixels), batch):
        yield np.stack(pixels[start : start + batch])


def _accuracy(correct: int, total: int) -> dict[str, float]:
    low, high = wilson_interval(correct, total)
    return {"value": correct / total, "low": low, "high": high, "correct": correct, "total": total}


def _first(names: Sequence[str], chosen_N: np.ndarray) -> str:
    found = [names[i] for i in np.flatnonzero(chosen_N).tolist()]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _finite(value: Any) -> float:
    """JSON knows no infinity: the largest double stands for it."""
    return float(min(value, np.finfo(np.float64).max))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
