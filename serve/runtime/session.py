"""ONNX Runtime: the only module that imports it, and the definition of its session options.

Verification, server and device create sessions here, so the settings that were verified are the settings in use.

To add a configuration entry that always applies, add a line to `SETTINGS`, and to the ports under `docs/devices/`, which a test
compares. To add an option that a caller chooses, add a key to `SessionOptions` and to `DEFAULTS`, and apply it in
`session_options`, or in `session_settings` if it becomes a configuration entry; if it depends on the variant, also set it in
`options_for`. The benchmark's subprocess and the key of a cached graph follow. An option that does not become a configuration
entry must also be added to `serve.runtime.provenance.runtime_options`.
"""

import os
import re
from pathlib import Path
from typing import Any, TypedDict, Unpack

from edgeline.serve.artifact.manifest import Variant
from edgeline.serve.errors import ArtifactError
from edgeline.serve.runtime.cpu import multiplies_exactly, usable_cores

PROVIDERS = ("CPUExecutionProvider",)

# `session.set_denormal_as_zero` is left off: it also changes how the calling thread computes, long after the session.
# Session configuration entries; see onnxruntime_session_options_config_keys.h.
SETTINGS = {
    "session.intra_op.allow_spinning": "0",  # waiting threads sleep: small machines have other work for those cores
    # Keeps float layers float: this optimizer would quantize the weights of layers that quantization excluded, per tensor.
    "optimization.disable_specified_optimizers": "WeightBiasQuantization",
}
SOURCE_LOCATION = re.compile(r"/onnxruntime_src/\S+:\d+ .*?\) ")
"""File, line and C++ signature in a message of ONNX Runtime, which are longer than its reason."""
EXACT = {"session.x64quantprecision": "1"}
"""For x86 without VNNI, which adds two int8 products in 16 bits and saturates: makes results exact, and slower."""


class SessionOptions(TypedDict, total=False):
    """How ONNX Runtime runs a model; keys that are left out have their value in `DEFAULTS`."""

    threads: int | None
    """Intra-op threads; None for as many as this process may use."""
    level: str
    """Graph optimizations: `all`, which is used in production; `extended`, `basic` or `disable_all` for comparisons."""
    saturates: bool
    """Whether the sum of two int8 products may exceed 16 bits. If False, the exact setting would only cost time."""


DEFAULTS: SessionOptions = {"threads": None, "level": "all", "saturates": True}


def options_for(variant: Variant) -> SessionOptions:
    """The options that an artifact's variant needs."""
    return {"saturates": variant.saturates}


def load_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off.

    Wheels since 1.29 open a database under the user's cache folder and send telemetry unless the variable is set before the
    first import. Nothing else in edgeline may import onnxruntime.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def create_session(model: bytes, *, optimized: Path | None = None, **options: Unpack[SessionOptions]) -> Any:
    """Create an inference session for the CPU.

    Args:
        model: an ONNX or ORT file. Bytes, not a path, so that what was hashed is what is loaded; weights in other files,
            which a path relative to the working directory would otherwise reach, are an error.
        optimized: a file to write the optimized graph to.
        options: see `SessionOptions`.

    Raises:
        ArtifactError: the runtime cannot load the model, or cannot write that file.
    """
    ort = load_onnxruntime()
    ort_options = session_options(**options)
    ort_options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if optimized is not None:
        ort_options.optimized_model_filepath = str(optimized)
        ort_options.add_session_config_entry("session.save_model_format", "ONNX")  # the default depends on the file name
    try:
        session = ort.InferenceSession(model, ort_options, providers=list(PROVIDERS))
    except Exception as error:  # its exceptions have no common base class
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load the model: {reason_of(error)}", code="model_unloadable"
        ) from error
    # The session keeps the bytes to load them again with other providers, and there are none.
    session._model_bytes = None
    return session


def reason_of(error: Exception) -> str:
    """The reason in an exception of ONNX Runtime, on one line."""
    return SOURCE_LOCATION.sub("", " ".join(str(error).split()))[:300] or type(error).__name__


def session_options(**options: Unpack[SessionOptions]) -> Any:
    """The `onnxruntime.SessionOptions` of `create_session`."""
    ort = load_onnxruntime()
    ort_options = ort.SessionOptions()
    chosen = DEFAULTS | options
    ort_options.intra_op_num_threads = chosen["threads"] or usable_cores()
    ort_options.inter_op_num_threads = 1
    level = chosen["level"]
    level_name = "ORT_DISABLE_ALL" if level == "disable_all" else f"ORT_ENABLE_{level.upper()}"
    ort_options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level_name)
    ort_options.log_severity_level = 3
    for key, value in session_settings(**options).items():
        ort_options.add_session_config_entry(key, value)
    return ort_options


def session_settings(**options: Unpack[SessionOptions]) -> dict[str, str]:
    """The session configuration entries for this machine."""
    needs_exact = (DEFAULTS | options)["saturates"] and not multiplies_exactly()
    return SETTINGS | EXACT if needs_exact else dict(SETTINGS)
