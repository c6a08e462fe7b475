"""The `edgeline` command.

Nothing heavy is imported here: each command imports what it needs when it runs, so `edgeline predict` works on a device that
has only the base install. This is one of the two process edges: an error that a person can act on becomes one line and exit
code 1, an invalid command line exit code 2, and an interrupt exit code 130.
"""

import io
import os
import sys
import warnings
from typing import Annotated

import typer

from edgeline.flows.cli import compare, experiment, models, run, steps, verify
from edgeline.flows.cli.operations import deploy, registries, score, store, sweep, up, update
from edgeline.flows.extras import missing_extra
from edgeline.serve.cli import register as device
from edgeline.serve.conformance import command as conformance
from edgeline.serve.errors import EdgelineError
from edgeline.serve.system_errors import out_of_memory, system_error

app = typer.Typer(
    name="edgeline",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(version("edgeline"))
        raise typer.Exit


@app.callback()
def edgeline(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train an image classifier from a folder of photos, verify it, and run it on small devices."""


app.command()(run.run)
app.command()(update.teach)
app.command()(update.retrain)
for command in (steps.prepare, steps.train, steps.evaluate, steps.export, steps.variants):
    app.command()(command)
app.command(cls=verify.VerifyCommand)(verify.verify)
app.command()(steps.publish)
app.command("list")(store.list_store)
for about_store in (store.show, store.promote, store.rollback, store.yank, store.prune, store.monitor):
    app.command()(about_store)
app.command()(registries.push)
app.command()(registries.pull)
app.command()(score.score)
app.command()(models.backbones)
app.command()(models.inspect)
app.command()(experiment.experiment)
app.command("find-rate")(experiment.find_rate)
app.command()(experiment.runs)
app.command("verify-onnx")(verify.verify_onnx)
app.command()(verify.emulate)
app.command()(compare.diff)
app.command()(models.explain)
app.command("deploy")(deploy.deploy_pipeline)
app.command()(up.up)
app.command()(sweep.sweep)
device.register(app)
conformance.register(app)


def main() -> None:
    """Run the command line, and turn errors into one line and an exit code."""
    # Makes idle threads of PyTorch's OpenMP sleep instead of spin, which trains two to four times faster on a machine with
    # other work to do. Set here because it is read when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Pillow's warnings about damaged metadata: every image gets a prediction or an error of ours.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Prefect's about a home that cannot be written: the embedded server has a folder of its own.
    warnings.filterwarnings("ignore", message="Failed to create the Prefect home directory")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for labels and file names that a terminal's encoding lacks
    try:
        app()
    except EdgelineError as error:
        fail(out_of_memory(error) or error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone
        sys.exit(1)
    except Exception as error:
        known = (missing_extra(error) if isinstance(error, ModuleNotFoundError) else None) or system_error(error)
        if known is None:
            raise
        fail(known)


def fail(error: EdgelineError) -> None:
    """Print an error as one line and exit."""
    print(f"edgeline: {' '.join(str(error).split())} [{error.code}]", file=sys.stderr)
    sys.exit(1)
