"""Base of the sections of the configuration."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _split(value: Any) -> Any:
    return [each.strip() for each in value.split(",")] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""A list of names; `a,b` is the same as `["a", "b"]`."""
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of the sections: frozen; unknown keys, NaN and infinities are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
