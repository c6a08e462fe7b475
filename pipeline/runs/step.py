"""A step of the pipeline: what its result depends on, and how it is built or reused.

A step is described by data (`Step`). Its key covers the results that it reads, its settings by value, the code of its build
function with everything that this code imports, and the versions of the libraries that do the work. An unchanged step is
recognized by its key within milliseconds, without importing the module that builds it.
"""

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.runs.atomic_files import digest_of
from edgeline.pipeline.runs.code_digest import code_digest
from edgeline.pipeline.runs.receipts import result_digest, run_step
from edgeline.pipeline.runs.run import Run, StepResult

CODE_CACHE = "code.json"
"""File in the cache folder that stores parsed imports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the pipeline."""

    name: str
    """Also the name of its folder in a run."""
    build: str
    """`module:function`. The function is called with the run and the folder to write into."""
    reads: tuple[str, ...]
    """Steps whose results it reads."""
    settings: tuple[str, ...] = ()
    """Settings it depends on, as dotted names: `seed`, `train`, `export.opset`."""
    packages: tuple[str, ...] = ()
    """Distributions whose version matters."""
    external: Callable[[PipelineConfig], Mapping[str, str]] | None = None
    """Returns digests of files that the settings refer to."""

    def key(self, run: Run) -> str:
        """Return the digest of everything that the step's result depends on.

        Raises:
            EdgelineError: a step that it reads has not been run.
        """
        settings = run.config.model_dump(mode="json")
        inputs: dict[str, Any] = {
            "results": {name: result_digest(run.step(name)) for name in self.reads},
            "settings": {name: reduce(lambda part, key: part[key], name.split("."), settings) for name in self.settings},
        }
        if self.external is not None:
            inputs["external"] = self.external(run.config)
        code = code_digest(self.build.partition(":")[0], cache=run.config.cache / CODE_CACHE)
        return step_key(inputs, code, self.packages)

    def execute(self, run: Run) -> StepResult:
        """Build the step's result, or reuse it.

        Raises:
            EdgelineError: another process is building it, or the build failed.
        """

        def build(folder: Path) -> None:
            module, _, function = self.build.partition(":")
            getattr(importlib.import_module(module), function)(run, folder)

        return build_or_reuse(run, self.name, self.key(run), build)


def build_or_reuse(run: Run, name: str, key: str, build: Callable[[Path], None]) -> StepResult:
    """Build one step of a run, or reuse its result (see `pipeline.runs.receipts.run_step`)."""
    start = time.monotonic()
    built = run_step(run.step(name), key, build)
    return StepResult(name, run.step(name), not built, time.monotonic() - start)


def step_key(inputs: Mapping[str, Any], code: str, packages: tuple[str, ...] = ()) -> str:
    """Return the digest of everything that a result depends on.

    Args:
        inputs: JSON values: digests of the data that it reads, and its settings.
        code: digest of its code, as `code_digest` returns it.
        packages: distributions whose version matters.
    """
    return digest_of({"inputs": inputs, "code": code, "packages": {name: _version(name) for name in packages}})


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
