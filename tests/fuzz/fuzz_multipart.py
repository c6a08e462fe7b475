"""Any multipart body is read as files or rejected with an InputError."""

import sys

import atheris

with atheris.instrument_imports(include=["serve", "python_multipart"]):
    from starlette.datastructures import Headers

    from edgeline.serve.errors import InputError
    from edgeline.serve.http.request_body import boundary_of, files_in

BODY = b'--B\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'


def once(data: bytes) -> None:
    """The first byte selects what the rest is: a body, the inside of a form, or a Content-Type."""
    kind, rest = data[:1], data[1:]
    try:
        if kind < b"U":
            files_in(rest, b"B")
        elif kind < b"\xaa":
            files_in(BODY + rest + b"\r\n--B--\r\n", b"B")
        else:
            boundary = boundary_of(Headers({"content-type": rest[:200].decode("latin-1")}))
            if boundary is not None:
                files_in(rest[200:], boundary)
    except InputError:
        return


atheris.Setup(sys.argv, once)
atheris.Fuzz()
