"""Which operator sets of ONNX the releases of ONNX Runtime support."""

OPSETS = {"1.14": 18, "1.15": 19, "1.16": 19, "1.17": 20, "1.18": 21, "1.19": 21, "1.20": 21, "1.21": 22}
"""Newest operator set by release, from the compatibility table in ONNX Runtime's documentation."""


def newest_opset(release: str) -> int:
    """The newest operator set that a release supports; for releases newer than the table, that of its last entry.

    Args:
        release: `1.15`, `1.15.1` or `onnxruntime>=1.15`.
    """
    number = release_number(release)
    return max(opset for known, opset in OPSETS.items() if release_number(known) <= number)


def release_number(release: str) -> tuple[int, int]:
    """Major and minor version of a release."""
    major, minor, *_ = release.removeprefix("onnxruntime>=").split(".")
    return int(major), int(minor)
