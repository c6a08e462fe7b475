"""The section `engine` of the configuration: what works on shards of images."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from edgeline.pipeline.config_section import Section
from edgeline.serve.errors import ConfigError


class EngineConfig(Section):
    """Work on many images with the threads of this process, or with the workers of a cluster; the results are the same."""

    kind: Literal["local", "dask"] = Field(
        "local",
        description="`local`: threads of this process. `dask`: the workers of a Dask cluster, which need the same version of "
        "edgeline and its libraries, and the data and `artifacts` at the same paths.",
    )
    address: str = Field("", description="Address of the cluster's scheduler, such as `tcp://10.0.0.5:8786`.")
    workers: int = Field(
        0, ge=0, le=1024, description="Number of threads for `local`; 0 for as many as this process may use processors."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "local" and self.address:
            raise ValueError(f"address {self.address!r} is not used by the kind local; set engine.kind=dask")
        if self.kind == "dask" and not self.address:
            raise ValueError("the kind dask needs the address of its scheduler; set engine.address=tcp://HOST:8786")
        if self.kind == "dask" and self.workers:
            raise ValueError("workers is for the kind local only; a cluster has as many as were started")
        return self


def engine_config(**values: Any) -> EngineConfig:
    """The section alone, for a command without a whole configuration.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        return EngineConfig.model_validate(values)
    except ValidationError as error:
        problems = (
            ".".join(["engine", *map(str, each["loc"])]) + f": {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
        )
        raise ConfigError("; ".join(problems)) from error
