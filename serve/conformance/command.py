"""The command `edgeline conformance URL`: check a server of the Open Inference Protocol V2."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeline.serve.conformance.catalogue import GROUPS, REQUIRED
from edgeline.serve.errors import EdgelineError, InputError

if TYPE_CHECKING:
    from edgeline.serve.conformance.runner import Result
    from edgeline.serve.conformance.target import Target

OUTCOMES = ("passed", "failed", "skipped")


def register(app: typer.Typer) -> None:
    """Add the command to a command line."""
    app.command()(conformance)


def conformance(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server: http://HOST:PORT, with a base path if it has one.")],
    model: Annotated[str | None, typer.Option(help="The model to check; by default the first that the server lists.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
    expression: Annotated[
        str | None,
        typer.Option("-k", metavar="EXPR", help="Run only checks whose ids match, in the syntax of pytest's -k."),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="File to send to BYTES inputs; by default a small PNG, or text for other inputs."),
    ] = None,
) -> None:
    """Check a server's conformance to the Open Inference Protocol V2 (REST).

    Works with any server: inputs are generated from the model's metadata. A check is required by the specification, by
    tritonclient or by perf_analyzer, or tests robustness. The exit code is 0 only if no required check failed.

        edgeline conformance http://127.0.0.1:8000

        edgeline conformance http://127.0.0.1:8000 --model flowers.pixels -k "infer or id" --json
    """
    # A missing extra must fail here, with a line that names it: the checks import these too late for that.
    import geventhttpclient  # noqa: F401
    import tritonclient  # noqa: F401

    from edgeline.serve.conformance.runner import run

    target = reach(url, model, image)
    results = run(target, expression)
    if not results:
        raise InputError(f"no check matches -k {expression!r}; docs/conformance.md lists the ids", code="no_check")
    report = describe(target, results)
    if as_json:
        print(json.dumps(report))
    else:
        _print(report)
    if not report["conforms"]:
        raise typer.Exit(1)


def reach(url: str, model: str | None = None, image: Path | None = None) -> "Target":
    """Connect to the server and read its model's metadata.

    Raises:
        EdgelineError: the server cannot be reached, or does not describe the model.
    """
    import http.client

    from edgeline.serve.conformance.reply import Deviation
    from edgeline.serve.conformance.target import Target

    data = image.read_bytes() if image else None
    try:
        return Target(url, model, data)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise EdgelineError(f"{url} cannot be reached: {reason}; is the server running?", code="unreachable") from error
    except (Deviation, KeyError, TypeError, AttributeError) as error:
        raise EdgelineError(
            f"{url} does not describe {model or 'its models'} as /v2 and /v2/models/M should: {error}", code="no_metadata"
        ) from error


def describe(target: "Target", results: "list[Result]") -> dict[str, Any]:
    """Return the report as JSON types."""
    counts = {
        group: {outcome: sum(r.outcome == outcome for r in results if r.check.group == group) for outcome in OUTCOMES}
        for group in dict.fromkeys(GROUPS.values())
    }
    return {
        "url": target.url,
        "model": target.model,
        "server": {name: target.server.get(name) for name in ("name", "version", "extensions")},
        "conforms": not any(counts[group]["failed"] for group in REQUIRED),
        "counts": counts,
        "checks": [{**asdict(r.check), "outcome": r.outcome, "detail": r.detail} for r in results],
    }


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, colors = Console(), {"passed": "green", "failed": "red", "skipped": "yellow"}
    table = Table("group", "check", "result", "description, and what was seen")
    for check in report["checks"]:
        text = f"{check['sentence']}\n{check['detail']}" if check["detail"] else check["sentence"]
        result = f"[{colors[check['outcome']]}]{check['outcome']}[/]"
        table.add_row(check["group"], check["id"], result, escape(text))
    console.print(table)
    for group, counted in report["counts"].items():
        console.print(f"{group}: " + ", ".join(f"{counted[outcome]} {outcome}" for outcome in OUTCOMES), highlight=False)
    verdict = "conforms" if report["conforms"] else "does not conform"
    server = report["server"]
    console.print(f"{server['name']} {server['version']} with model {report['model']} {verdict}", markup=False, highlight=False)
