"""The server's log on stderr: one line per event, as text or as JSON.

Images, tokens and headers are never logged, and text from a client cannot start a new line.
"""

import json
import logging
import sys
from datetime import UTC, datetime

from starlette.types import Scope

ACCESS = logging.getLogger("edgeline.serve.access_log")
EXTRA = ("request_id", "client", "method", "route", "status", "ms")


class JsonLines(logging.Formatter):
    """Formats records as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: record.__dict__[name] for name in EXTRA if name in record.__dict__}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class TextLines(logging.Formatter):
    """Formats records as text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text, with the line breaks of its message escaped."""
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        time = datetime.fromtimestamp(record.created).isoformat(sep=" ", timespec="milliseconds")
        line = f"{time} {record.levelname} {record.name}: {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_request(scope: Scope, route: str, status: int, seconds: float) -> None:
    """Log one request."""
    client = scope.get("client") or ("", 0)
    fields = {
        "request_id": scope["state"]["request_id"],
        "client": client[0],
        "method": scope["method"],
        "route": route,
        "status": status,
        "ms": round(seconds * 1e3, 2),
    }
    ACCESS.info("%(client)s %(method)s %(route)s %(status)s %(ms)s ms %(request_id)s", fields, extra=fields)


def set_up_logs(*, as_json: bool) -> None:
    """Log the server's own records, and the warnings of its libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("edgeline.serve").setLevel(logging.INFO)
