"""Open classifiers for the server: with how many threads, and with which cached graphs."""

import logging
import time
from pathlib import Path

from edgeline.serve.classifier import Classifier
from edgeline.serve.http.config import ServerConfig
from edgeline.serve.inference.autotune import find_plan, load_plan, sample_image, save_plan
from edgeline.serve.inference.sandbox import validate_in_subprocess
from edgeline.serve.inference.scheduler import ConcurrencyPlan, Engine
from edgeline.serve.runtime.cpu import usable_cores

LOG = logging.getLogger(__name__)


class ModelLoader:
    """Opens classifiers with the threads of a concurrency plan, which is measured with the first of them.

    All methods are called by the thread that loads models.
    """

    def __init__(self, config: ServerConfig, engine: Engine) -> None:
        self.config = config
        self.engine = engine
        self._threads = config.plan.threads if config.plan else 1
        self._starting = True

    def open(self, path: Path) -> Classifier:
        """Open an artifact and run its self-test."""
        return self._open(path, self._threads)

    def validate(self, path: Path) -> None:
        """Open an artifact and run its self-test in a child process."""
        validate_in_subprocess(path, self.config.variant, max_pixels=self.config.limits.max_pixels)

    def on_first(self, classifier: Classifier) -> Classifier:
        """Find the plan and start the engine's workers; return the classifier, opened with the plan's threads."""
        plan = self.config.plan or self._find_plan(classifier)
        if plan.threads != self._threads:
            self._threads = plan.threads
            classifier = self.open(classifier.artifact.folder)
        self.engine.start(plan)
        return classifier

    def on_ready(self) -> None:
        """All models are loaded: from now on no optimized graph is read or written.

        Writing one takes time in which no request is answered, and a new version is loaded exactly as the child process that
        validated it loaded it, which neither reads the cache nor can write to it. Of several models of one start, all but the
        first were validated in a child too; their cached graphs were made by this user's server from the same file, and
        passed their self-test.
        """
        self._starting = False

    def _open(self, path: Path, threads: int, *, verify: bool = True) -> Classifier:
        config = self.config
        cache = config.cache if self._starting else None
        return Classifier.open(path, variant=config.variant, threads=threads, limits=config.limits, verify=verify, cache=cache)

    def _find_plan(self, classifier: Classifier) -> ConcurrencyPlan:
        cores, cache = usable_cores(), self.config.cache
        if (plan := load_plan(classifier, cores, cache)) is not None:
            return plan
        begun = time.perf_counter()
        folder = classifier.artifact.folder

        def open_with(threads: int) -> Classifier:
            return classifier if threads == 1 else self._open(folder, threads, verify=False)

        plan = find_plan(open_with, sample_image(classifier), cores)
        found = f"{plan.workers} workers with {plan.threads} threads each, batches of up to {plan.batch}"
        LOG.info("found in %.1f s for %d cores: %s", time.perf_counter() - begun, cores, found)
        save_plan(plan, classifier, cores, cache)
        return plan
