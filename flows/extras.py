"""The extras of the distribution, and which of them brings a missing package."""

from importlib.util import find_spec

from edgeline.serve.errors import MissingExtraError

EXTRAS = {
    "starlette": "http",
    "httptools": "http",
    "prometheus_client": "http",
    "opentelemetry": "otel",
    "python_multipart": "http",
    "geventhttpclient": "conformance",
    "pytest": "conformance",
    "tritonclient": "conformance",
    "prefect": "flows",
    "mlflow": "mlflow",
    "dask": "dask",
    "distributed": "dask",
    "pyarrow": "parquet",
    "onnx": "export",
    "onnxscript": "export",
    "jinja2": "export",
}
"""The extra that brings a package. Every other package that can be missing comes with `train`. OpenCV and the runtimes of other
formats are not listed: `serve.inputs.camera` and `serve.runtime.backends` raise `MissingExtraError` themselves."""


def missing_extra(error: ModuleNotFoundError, default: str = "train") -> MissingExtraError | None:
    """Translate a failed import into the error that names the extra to install.

    Args:
        error: as the import raised it.
        default: the extra that brings packages which `EXTRAS` does not list.

    Returns:
        None if the package is installed, so the failed import is a bug.
    """
    package = (error.name or "").partition(".")[0]
    if find_spec(package) is not None:
        return None
    return MissingExtraError(package, EXTRAS.get(package, default))
