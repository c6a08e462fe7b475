"""The web page: choose a photo, see the prediction, and read about the model.

    GET /         the page; it loads /page.css and the /page*.js files, and nothing from other hosts
    GET /model    what the page shows about the model, as JSON; 503 while there is none

Invariants:
- the page's files are read once, at the start, and have the SHA-256 of their content as a strong ETag;
- a browser runs scripts of this server only, and never turns text into markup: the policy below forbids both;
- only verified bytes of the artifact are used, up to a limit, and a part that is missing or malformed is left out with a
  remark: a page without it is better than none.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeline.serve.artifact.reader import Artifact
from edgeline.serve.classifier import Classifier
from edgeline.serve.http.conditional import names_tag

FOLDER = Path(__file__).parents[1] / "static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}

CARD, MAX_CARD_BYTES = "card.md", 256 * 2**10
EVALUATION, MAX_EVALUATION_BYTES = "evaluation.json", 16 * 2**20
"""A confusion matrix of 1,600 classes, a number a line, still fits."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No script, ours or another's, can turn text into markup: innerHTML and the like throw.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
}


FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
PATHS = frozenset("/" if path.name == "index.html" else f"/{path.name}" for path in FILES)
"""Paths of the page's files: the same on every server, so they need no token."""


def page_routes(current: Callable[[], Classifier], remarks: Sequence[str] = ()) -> list[Route]:
    """The page's routes, for `Starlette(routes=)`; each answers GET and HEAD.

    Args:
        current: returns the classifier that `/model` describes, or raises NotReadyError.
        remarks: about the server, for the page.
    """
    files = [_file_route(path) for path in FILES]
    return [*files, Route("/model", ModelFacts(current, remarks).model)]


class ModelFacts:
    """`GET /model`, built once for each artifact."""

    def __init__(self, current: Callable[[], Classifier], remarks: Sequence[str] = ()) -> None:
        self._current = current
        self._remarks = remarks
        self._made: tuple[Artifact | None, bytes] = (None, b"")

    async def model(self, request: Request) -> Response:
        """Describe the model that is served now."""
        classifier = self._current()
        artifact, body = self._made
        if artifact is not classifier.artifact:
            body = await run_in_threadpool(facts, classifier, self._remarks)
            self._made = (classifier.artifact, body)
        return _reply(request, body, "application/json")


def facts(classifier: Classifier, about_server: Sequence[str] = ()) -> bytes:
    """The JSON of `/model`.

    `evaluation` is the artifact's own, except for its confusion matrix: that is a list of `[true, predicted, images]`, by
    index, without the zeros. `remarks` lists `about_server`, and what was left out, with the reason.

    Raises:
        DigestError: a file of the artifact no longer matches the manifest.
    """
    manifest, remarks = classifier.manifest, list(about_server)
    card = _read(classifier.artifact, CARD, MAX_CARD_BYTES, remarks)
    body = {
        "model": manifest.name,
        "version": manifest.version,
        "variant": classifier.variant.name,
        "precision": classifier.variant.precision,
        "task": manifest.task,
        "created": manifest.created,
        "labels": manifest.labels,
        "preprocess": manifest.preprocess.to_dict(),
        "metrics": manifest.metrics,
        "verification": classifier.variant.verification,
        "evaluation": _evaluation(classifier.artifact, remarks),
        "card": None if card is None else card.decode(errors="replace"),
        "self_test": asdict(classifier.self_test) if classifier.self_test else None,
        "max_bytes": classifier.limits.max_bytes,
        "explains": classifier.explains,
        "remarks": remarks,
    }
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError:  # 1e999 in a manifest is read as infinity
        remarks.append("the manifest's metrics contain a number that is not finite")
        return json.dumps({**body, "metrics": {}, "verification": {}}, allow_nan=False).encode()


def _evaluation(artifact: Artifact, remarks: list[str]) -> dict[str, Any] | None:
    data = _read(artifact, EVALUATION, MAX_EVALUATION_BYTES, remarks)
    if data is None:
        return None
    try:
        return _checked(json.loads(data), artifact.manifest.labels)
    except (ValueError, TypeError, KeyError, RecursionError):
        remarks.append(f"{EVALUATION} does not match edgeline.evaluation/1, or has other labels")
        return None


def _read(artifact: Artifact, path: str, max_bytes: int, remarks: list[str]) -> bytes | None:
    entry = next((entry for entry in artifact.manifest.files if entry.path == path), None)
    if entry is None:
        return None
    if entry.size > max_bytes:
        remarks.append(f"{path} has {entry.size:,} bytes, the page shows at most {max_bytes:,}")
        return None
    return artifact.read(path)


def _checked(evaluation: dict[str, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """The parts of an evaluation that the page shows, with every number checked.

    Raises:
        ValueError, TypeError, KeyError: it does not match docs/schemas/evaluation.schema.json.
    """
    confusion, classes = evaluation["confusion"], evaluation["classes"]
    if evaluation["schema"] != "edgeline.evaluation/1" or evaluation["labels"] != list(labels):
        raise ValueError
    if not len(classes) == len(confusion) == len(labels) or any(len(row) != len(labels) for row in confusion):
        raise ValueError
    return {
        "images": _count(evaluation["images"]),
        "top1": _share(evaluation["top1"]),
        "top5": None if evaluation["top5"] is None else _share(evaluation["top5"]),
        "macro_f1": _fraction(evaluation["macro"]["f1"]),
        "calibration_error": _fraction(evaluation["calibration"]["ece_after"]),
        "classes": [
            {name: _fraction(one[name]) for name in ("precision", "recall", "f1")} | {"support": _count(one["support"])}
            for one in classes
        ],
        "confusion": [
            [true, predicted, count]
            for true, row in enumerate(confusion)
            for predicted, count in enumerate(map(_count, row))
            if count
        ],
    }


def _share(share: dict[str, Any]) -> dict[str, float]:
    bounds = {name: _fraction(share[name]) for name in ("value", "low", "high")}
    return bounds | {name: _count(share[name]) for name in ("correct", "total")}


def _fraction(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ValueError
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError
    return value


def _file_route(path: Path) -> Route:
    body, media_type = path.read_bytes(), MEDIA_TYPES[path.suffix]

    async def file(request: Request) -> Response:
        return _reply(request, body, media_type)

    return Route("/" if path.name == "index.html" else f"/{path.name}", file)


def _reply(request: Request, body: bytes, media_type: str) -> Response:
    tag = f'"{hashlib.sha256(body).hexdigest()}"'
    headers = {**HEADERS, "ETag": tag}
    if names_tag(request.headers.getlist("if-none-match"), tag, weakly=True):
        return Response(status_code=304, headers=headers)
    return Response(body, headers={**headers, "Content-Type": media_type})
