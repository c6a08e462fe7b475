"""Every error that edgeline raises on purpose, split by who must act.

EdgelineError
    InputError              the caller: send another image or request
        ImageError
    NotReadyError           the client: ask again later; the operator, where it stays so
    ConfigError             the author of the configuration
    DataError               the owner of the data set
    WeightsError            whoever provides the pretrained weights
    TrainingError           whoever chose the training settings
    ArtifactError           the operator: copy or publish the artifact again
        ManifestError
        DigestError
        GoldenError
    StoreError              the operator: mend the store's folder
    ExportError             the maintainer of the model: it cannot be exported as promised
    VerificationError       the same: the export is not the model
    MissingExtraError       whoever installed edgeline
    OverloadedError         the caller: come again later
    DeadlineError           the caller: allow more time, or come again later

Each carries a stable `code` (a slug for machines) and one line for people: what was seen, what was expected, what to do
next. The two process edges, the command line and the HTTP server, turn them into an exit code and a status.
"""


class EdgelineError(Exception):
    """Base of all errors that a person can act on."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InputError(EdgelineError):
    """A request cannot be answered as it is."""

    code = "bad_request"


class ImageError(InputError):
    """Bytes that are not an image edgeline can read, or one over the limits."""

    code = "image_invalid"


class NotReadyError(EdgelineError):
    """A model that this server is for does not answer now."""

    code = "not_ready"


class ConfigError(EdgelineError):
    """A setting is unknown, of the wrong type or out of range."""

    code = "config_invalid"


class DataError(EdgelineError):
    """A data set cannot be trained on as it is."""

    code = "data_invalid"


class WeightsError(EdgelineError):
    """Pretrained weights are absent, or not the ones that were named."""

    code = "weights_missing"


class TrainingError(EdgelineError):
    """Training cannot go on; the last good state is kept."""

    code = "training_failed"


class ArtifactError(EdgelineError):
    """An artifact is not whole, or not what it says it is."""

    code = "artifact_invalid"


class ManifestError(ArtifactError):
    """A manifest.json breaks its schema."""

    code = "manifest_invalid"


class DigestError(ArtifactError):
    """A file is not the one that its manifest names."""

    code = "digest_mismatch"


class GoldenError(ArtifactError):
    """This machine does not give the probabilities that the model gave when it was proven."""

    code = "golden_mismatch"


class StoreError(EdgelineError):
    """A store of published artifacts cannot be read or written."""

    code = "store_unusable"


class ExportError(EdgelineError):
    """The model cannot be exported under the graph contract."""

    code = "export_failed"


class VerificationError(EdgelineError):
    """The exported file does not give what the model gives."""

    code = "verification_failed"


class MissingExtraError(EdgelineError):
    """A command needs packages that the base install leaves out."""

    code = "missing_extra"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs the package {module!r}: pip install 'edgeline[{extra}]'")


class OverloadedError(EdgelineError):
    """A request was not taken in, because it would not be answered in time."""

    code = "overloaded"

    def __init__(self, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("the server has as much work as it can answer in time; come again later")


class DeadlineError(EdgelineError):
    """A request was taken in, and its time is over."""

    code = "deadline_exceeded"

    def __init__(self, *, started: bool) -> None:
        self.started = started
        where = "while its image was worked on" if started else "before its image was looked at"
        super().__init__(f"the request's time was over {where}; allow more, or come again later")
