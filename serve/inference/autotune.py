"""Find the fastest use of this machine's cores for a model by measuring, and remember it.

A plan is valid for one processor, number of cores, runtime version and model file. Each combination has its own file in the
cache folder, so only the first start takes the time. A folder that is not writable, or that others may write to, is not used.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from edgeline.serve.artifact import golden
from edgeline.serve.classifier import Classifier
from edgeline.serve.inference.scheduler import BATCHES, ConcurrencyPlan
from edgeline.serve.runtime.graph_cache import is_private
from edgeline.serve.runtime.provenance import machine
from edgeline.serve.runtime.session import load_onnxruntime

LOG = logging.getLogger(__name__)

WORTH_ONE_WORKER = 0.97
"""Speed of one worker with all cores, relative to many workers, from which it is preferred: it answers a lone client sooner."""
WORTH_A_BATCH = 1.1
"""Speed of a batch, relative to single images, from which it is preferred: less does not justify that its first image waits."""
ROUNDS = 3


def find_plan(
    open_classifier: Callable[[int], Classifier], image: bytes, cores: int, *, budget_s: float = 2.0
) -> ConcurrencyPlan:
    """Measure which concurrency plan answers the most images per second.

    Compares as many workers as cores with one thread each to one worker with all cores, with every worker busy and decoding
    included; then, on the faster of the two, batches. The alternatives run in turns and the best turn of each counts, because
    other work on the machine can only make a turn slower.

    Args:
        open_classifier: opens the model with a number of threads.
        image: an encoded image.
        cores: usable cores.
        budget_s: approximate time for all measurements, without opening models.
    """
    each_s = budget_s / (2 * ROUNDS * len(BATCHES))
    plan, classifier = ConcurrencyPlan(workers=cores, threads=1), open_classifier(1)
    if cores > 1:
        wide_plan, wide = ConcurrencyPlan(workers=1, threads=cores), open_classifier(cores)
        if _speed_ratio(image, each_s, (wide, wide_plan), (classifier, plan)) > WORTH_ONE_WORKER:
            plan, classifier = wide_plan, wide
    found = plan
    for size in [size for size in BATCHES[1:] if size <= classifier.variant.max_batch]:
        batched = replace(plan, batch=size)
        if _speed_ratio(image, each_s, (classifier, batched), (classifier, plan)) > WORTH_A_BATCH:
            found = batched
    return found


def images_per_s(classifier: Classifier, image: bytes, plan: ConcurrencyPlan, seconds: float) -> float:
    """Return the throughput with every worker busy, after one run to warm up."""
    counts = [0] * plan.workers

    def answer() -> None:
        classifier.answer(np.stack([classifier.pixels(image) for _ in range(plan.batch)]))

    def work(index: int, until: float) -> None:
        while True:  # at least once: a busy machine may not let this thread run before then
            answer()
            counts[index] += plan.batch
            if time.perf_counter() >= until:
                break

    answer()
    begun = time.perf_counter()
    threads = [threading.Thread(target=work, args=(index, begun + seconds)) for index in range(plan.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def _speed_ratio(
    image: bytes, seconds: float, one: tuple[Classifier, ConcurrencyPlan], other: tuple[Classifier, ConcurrencyPlan]
) -> float:
    """How many times as fast the first alternative is, each at its best."""
    speeds = [[images_per_s(classifier, image, plan, seconds) for classifier, plan in (one, other)] for _ in range(ROUNDS)]
    best, others_best = np.max(speeds, axis=0)
    return float(best / others_best)


def load_plan(classifier: Classifier, cores: int, cache: Path | None) -> ConcurrencyPlan | None:
    """Return the plan that was saved for this model on a machine like this; None if there is none that can be trusted."""
    if cache is None or not is_private(cache):
        return None
    try:
        saved = json.loads((cache / _file_name(classifier, cores)).read_bytes())
        plan = ConcurrencyPlan(**{name: int(saved[name]) for name in ("workers", "threads", "batch")})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = 1 <= plan.workers <= cores and 1 <= plan.threads <= cores and plan.batch in BATCHES
    return plan if fits else None


def save_plan(plan: ConcurrencyPlan, classifier: Classifier, cores: int, cache: Path | None) -> None:
    """Save a plan for the next start; best effort."""
    if cache is None:
        return
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(cache):
            return
        path = cache / _file_name(classifier, cores)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(plan)))
        partial.replace(path)
    except OSError as error:
        LOG.info("the concurrency plan was not saved: %s", error.strerror)


def sample_image(classifier: Classifier) -> bytes:
    """Return an image to measure with: the artifact's first golden sample."""
    samples = json.loads(classifier.artifact.read(golden.FILE_NAME))["samples"]
    return classifier.artifact.read(samples[0]["file"])


def _file_name(classifier: Classifier, cores: int) -> str:
    entry = classifier.manifest.file(classifier.variant.file)
    key = [entry.sha256, cores, machine()["cpu"], machine()["flags"], load_onnxruntime().__version__]
    return f"plan-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
