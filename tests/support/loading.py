"""How the tests' model repositories load artifacts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeline.serve.classifier import Classifier
from edgeline.serve.preprocess import Limits


@dataclass
class TestLoader:
    """Opens artifacts with a function of the test's; validates them in this process, which takes half a second less.

    `validate_in_subprocess` has tests of its own, and the servers of tests/serve/http/test_main.py use it.
    """

    __test__ = False

    open_classifier: Callable[[Path], Classifier] = Classifier.open
    start: Callable[[], None] = lambda: None
    """Called when the first artifact is loaded."""
    max_pixels: int = Limits().max_pixels

    def open(self, path: Path) -> Classifier:
        """Open an artifact."""
        return self.open_classifier(path)

    def validate(self, path: Path) -> None:
        """Validate an artifact."""
        Classifier.open(path, threads=1, limits=Limits(max_pixels=self.max_pixels))

    def on_first(self, classifier: Classifier) -> Classifier:
        """Start the model."""
        self.start()
        return classifier

    def on_ready(self) -> None:
        """Nothing to do."""
