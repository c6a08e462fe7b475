"""What the server writes to stderr: one line an event, as text for people or as JSON for machines.

No image, no token and no header is ever logged, and a text from outside cannot begin a line of its own.
"""

import json
import logging
import sys
from datetime import UTC, datetime

from starlette.types import Scope

ACCESS = logging.getLogger("edgeline.serve.access_log")
EXTRA = ("request_id", "client", "method", "route", "status", "ms")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record as JSON."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: record.__dict__[name] for name in EXTRA if name in record.__dict__}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


class TextLines(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record, line breaks in its message made visible."""
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        time = datetime.fromtimestamp(record.created).isoformat(sep=" ", timespec="milliseconds")
        line = f"{time} {record.levelname} {record.name}: {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_request(scope: Scope, route: str, status: int, seconds: float) -> None:
    """Write one request's line."""
    client = scope.get("client") or ("", 0)
    told = {
        "request_id": scope["state"]["request_id"],
        "client": client[0],
        "method": scope["method"],
        "route": route,
        "status": status,
        "ms": round(seconds * 1e3, 2),
    }
    ACCESS.info("%(client)s %(method)s %(route)s %(status)s %(ms)s ms %(request_id)s", told, extra=told)


def set_up_logs(*, as_json: bool) -> None:
    """Have the server's own records written, and of its libraries the warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("edgeline.serve").setLevel(logging.INFO)
