"""The error response to a request that no application sees."""

import json
import secrets
from dataclasses import dataclass

from edgeline.serve.http.transport.exchange import status_line


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request or a connection is rejected."""

    status: int
    code: str
    """A stable slug."""
    message: str

    def response(self, date: bytes) -> bytes:
        """The whole response, which ends the connection.

        Args:
            date: the Date header as a line.
        """
        request_id = secrets.token_hex(8)
        body = json.dumps({"error": self.message, "code": self.code, "request_id": request_id}).encode()
        head = b"content-type: application/json\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n"
        head += b"x-request-id: %b\r\n" % request_id.encode()
        if self.status == 503:
            head += b"retry-after: 1\r\n"
        length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        return status_line(self.status) + date + head + length + body
