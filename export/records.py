"""Base of the reports that this layer writes as JSON: typed, frozen, and read back as they were written.

JSON has neither NaN nor infinity, so `JsonFloat` writes null for them and reads null as NaN.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.serve.errors import VerificationError

JsonFloat = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, return_type=float | None),
]


class Record(BaseModel):
    """A frozen part of a report. Fields that a newer version added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types."""
        return self.model_dump(mode="json", by_alias=True)


class Document(Record):
    """A record that is a file of its own."""

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            VerificationError: it is missing, or not in the shape of this version.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise VerificationError(f"{path} cannot be read: {error.strerror or error}", code="not_verified") from error
        except ValidationError as error:
            [first, *more] = error.errors()
            place = ".".join(map(str, first["loc"])) or "the file"
            rest = f" and {len(more)} more problems" if more else ""
            raise VerificationError(
                f"{path} is not a {cls.__name__} of this version ({place}: {first['msg']}{rest}); run the step again",
                code="not_verified",
            ) from error


class MeasuredOn(Record):
    """Where, when and with what a group of figures was measured; see `edgeline.serve.runtime.provenance`."""

    date: str
    command: str
    """The command that repeats the measurement."""
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
