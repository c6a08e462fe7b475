"""The `edgeline` command.

Imports nothing heavy: each command imports what it needs when it runs, so `edgeline predict` answers on a device that has
only the base install. This is one of the two process edges: every error that a person can act on becomes one line and
exit code 1 here, a command line that makes no sense exit code 2, and an interrupt 130.
"""

import os
import sys
import warnings
from importlib.util import find_spec
from typing import Annotated

import typer

from edgeline.flows.cli import run as line
from edgeline.flows.orchestration import deployment as deployments
from edgeline.serve.cli import register as device
from edgeline.serve.conformance import command as conformance
from edgeline.serve.errors import EdgelineError, MissingExtraError

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
    "onnx": "export",
    "onnxscript": "export",
    "jinja2": "export",
    "openvino": "openvino",
    "ai_edge_litert": "litert",
    "executorch": "executorch",
    "coremltools": "coreml",
    "cv2": "camera",
}
"""The extra that brings a package; all else that can be missing comes with `train`."""

app = typer.Typer(
    name="edgeline",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("edgeline"))
        raise typer.Exit


@app.callback()
def edgeline(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """From a folder of photos to an image classifier that carries its own proof to small machines."""


line.register(app)
deployments.register(app)
device.register(app)
conformance.register(app)


def main() -> None:
    """Run the command line, and turn errors into one line and an exit code."""
    # Threads of PyTorch's OpenMP that wait for each other sleep instead of spinning: on a machine with other work to do,
    # training is two to four times faster so. Read when PyTorch is loaded, which is why it is set here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Pillow's remarks on damaged metadata: every image gets an answer or an error of ours.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        app()
    except EdgelineError as error:
        fail(error)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if find_spec(module) is not None:
            raise
        fail(MissingExtraError(module, EXTRAS.get(module, "train")))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; there is nobody left to tell
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(EdgelineError(f"{where}{error.strerror or error}; look at the disk and its permissions", code="io_error"))


def fail(error: EdgelineError) -> None:
    """Print an error as one line and exit."""
    print(f"edgeline: {' '.join(str(error).split())} [{error.code}]", file=sys.stderr)
    sys.exit(1)
