"""All errors that edgeline raises deliberately, grouped by who can fix them.

EdgelineError
    InputError              the caller: send another image or request
        ImageError
    NotReadyError           the client: try again later; the operator, if it persists
    ConfigError             the author of the configuration
    DataError               the owner of the data set
    WeightsError            the user: provide the pretrained weights
    TrainingError           the user: change the training settings
    ArtifactError           the operator: copy or publish the artifact again
        ManifestError
        DigestError
        GoldenError
    StoreError              the operator: repair the store's folder
    ExportError             the maintainer of the model: it cannot be exported
    VerificationError       the maintainer of the model: the export differs from the model
    MissingExtraError       the user: install the extra
    OverloadedError         the caller: try again later
    DeadlineError           the caller: allow more time, or try again later

Each has a stable `code` (a slug for programs) and a message of one line: what was observed, what was expected, what to do
next. The command line turns them into an exit code, the HTTP server into a status.
"""


class EdgelineError(Exception):
    """Base of all errors that a user can fix."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InputError(EdgelineError):
    """A request is invalid."""

    code = "bad_request"


class ImageError(InputError):
    """Bytes are not a supported image, or it is over the limits."""

    code = "image_invalid"


class NotReadyError(EdgelineError):
    """A model of this server is currently unavailable."""

    code = "not_ready"


class ConfigError(EdgelineError):
    """A setting is unknown, of the wrong type or out of range."""

    code = "config_invalid"


class DataError(EdgelineError):
    """A data set cannot be used for training."""

    code = "data_invalid"


class WeightsError(EdgelineError):
    """Pretrained weights are missing, or not the configured ones."""

    code = "weights_missing"


class TrainingError(EdgelineError):
    """Training failed; the last good state is kept."""

    code = "training_failed"


class ArtifactError(EdgelineError):
    """An artifact is incomplete or inconsistent."""

    code = "artifact_invalid"


class ManifestError(ArtifactError):
    """A manifest.json violates its schema."""

    code = "manifest_invalid"


class DigestError(ArtifactError):
    """A file differs from its entry in the manifest."""

    code = "digest_mismatch"


class GoldenError(ArtifactError):
    """This machine does not reproduce the golden samples."""

    code = "golden_mismatch"


class StoreError(EdgelineError):
    """A store of published artifacts cannot be read or written."""

    code = "store_unusable"


class ExportError(EdgelineError):
    """The model cannot be exported with the graph contract."""

    code = "export_failed"


class VerificationError(EdgelineError):
    """The exported file differs from the model."""

    code = "verification_failed"


class MissingExtraError(EdgelineError):
    """A command needs packages that are not in the base install."""

    code = "missing_extra"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs the package {module!r}: pip install 'edgeline[{extra}]'")


class OverloadedError(EdgelineError):
    """A request was rejected because it could not be answered in time."""

    code = "overloaded"

    def __init__(self, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("the server is overloaded; try again later")


class DeadlineError(EdgelineError):
    """An accepted request exceeded its deadline."""

    code = "deadline_exceeded"

    def __init__(self, *, started: bool) -> None:
        self.started = started
        where = "while its image was processed" if started else "before its image was processed"
        super().__init__(f"the request exceeded its deadline {where}; allow more time, or try again later")
