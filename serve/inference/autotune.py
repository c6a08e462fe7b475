"""How a model uses the cores of this machine best, found by trying, and remembered.

What was found holds for one processor, number of cores, runtime and model file; each has its own note in the cache folder, so
that only the first start takes the time. A folder that cannot be written, or that others may write to, is not used.
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

BETTER = 0.97
ROUNDS = 3
WORTH_A_BATCH = 1.1
"""How much more a batch must bring: less is not worth making the first of it wait for the last."""


def calibrate(
    open_classifier: Callable[[int], Classifier], image: bytes, cores: int, *, budget_s: float = 2.0
) -> ConcurrencyPlan:
    """Find out how a model uses these cores best.

    Compared are as many runners as cores with one thread each, and one runner with all cores, by images per second, decoding
    counted, with every runner busy; and on the better of the two, batches. What is compared takes turns, because a machine has
    other work too, which only makes things slower: what counts is the best turn of each.

    Args:
        open_classifier: opens the model with so many threads.
        image: an encoded image.
        cores: how many threads are worth having.
        budget_s: roughly how long it may take, opening apart.
    """
    each_s = budget_s / (2 * ROUNDS * len(BATCHES))
    plan, classifier = ConcurrencyPlan(runners=cores, threads=1), open_classifier(1)
    if cores > 1:
        wide, other = ConcurrencyPlan(runners=1, threads=cores), open_classifier(cores)
        # One wide runner answers a lone client sooner, so it needs only be about as fast.
        if _ratio(image, each_s, (other, wide), (classifier, plan)) > BETTER:
            plan, classifier = wide, other
    found = plan
    for size in [size for size in BATCHES[1:] if size <= classifier.variant.max_batch]:
        batched = replace(plan, batch=size)
        if _ratio(image, each_s, (classifier, batched), (classifier, plan)) > WORTH_A_BATCH:
            found = batched
    return found


def images_per_s(classifier: Classifier, image: bytes, plan: ConcurrencyPlan, seconds: float) -> float:
    """Images answered a second with every runner busy, after one run each to warm up."""
    counts = [0] * plan.runners

    def answer() -> None:
        classifier.answer(np.stack([classifier.pixels(image) for _ in range(plan.batch)]))

    def work(index: int, until: float) -> None:
        while time.perf_counter() < until:
            answer()
            counts[index] += plan.batch

    answer()
    begun = time.perf_counter()
    threads = [threading.Thread(target=work, args=(index, begun + seconds)) for index in range(plan.runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def _ratio(
    image: bytes, seconds: float, one: tuple[Classifier, ConcurrencyPlan], other: tuple[Classifier, ConcurrencyPlan]
) -> float:
    """How many times as fast the one is, each at its best."""
    speeds = [[images_per_s(classifier, image, plan, seconds) for classifier, plan in (one, other)] for _ in range(ROUNDS)]
    best, others_best = np.max(speeds, axis=0)
    return float(best / others_best)


def remembered_plan(classifier: Classifier, cores: int, cache: Path | None) -> ConcurrencyPlan | None:
    """The plan that was found for this model on a machine like this; None if none was, or it is not to be trusted."""
    if cache is None or not is_private(cache):
        return None
    try:
        told = json.loads((cache / _note(classifier, cores)).read_bytes())
        plan = ConcurrencyPlan(**{name: int(told[name]) for name in ("runners", "threads", "batch")})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = 1 <= plan.runners <= cores and 1 <= plan.threads <= cores and plan.batch in BATCHES
    return plan if fits else None


def remember_plan(plan: ConcurrencyPlan, classifier: Classifier, cores: int, cache: Path | None) -> None:
    """Keep a plan for the next start, if there is a place for it."""
    if cache is None:
        return
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(cache):
            return
        note = cache / _note(classifier, cores)
        partial = note.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(plan)))
        partial.replace(note)
    except OSError as error:
        LOG.info("what was found is not remembered: %s", error.strerror)


def sample_image(classifier: Classifier) -> bytes:
    """An image to try a model with: the artifact's first golden sample."""
    told = json.loads(classifier.artifact.read(golden.FILE_NAME))
    return classifier.artifact.read(told["samples"][0]["file"])


def _note(classifier: Classifier, cores: int) -> str:
    entry = classifier.manifest.file(classifier.variant.file)
    key = [entry.sha256, cores, machine()["cpu"], machine()["flags"], load_onnxruntime().__version__]
    return f"plan-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
