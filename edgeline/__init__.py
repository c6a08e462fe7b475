"""Train an image classifier from a folder of photos, verify it and run it on small devices.

    from edgeline import Classifier

    classifier = Classifier.open("artifacts/store/birds")
    classifier.predict([open("photo.jpg", "rb").read()])

With the `export` extra, `fit` trains one:

    import edgeline

    result = edgeline.fit("photos/", name="birds", model="mobilenet_v2")
    result.accuracy

Importing this package loads nothing else: its public names are resolved on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeline.flows.fit import fit as fit
    from edgeline.serve.classifier import Classifier as Classifier
    from edgeline.serve.classifier import Prediction as Prediction

    __version__: str

_PUBLIC = {
    "Classifier": "edgeline.serve.classifier",
    "Prediction": "edgeline.serve.classifier",
    "fit": "edgeline.flows.fit",
}
__all__ = ["Classifier", "Prediction", "__version__", "fit"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("edgeline")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'edgeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
