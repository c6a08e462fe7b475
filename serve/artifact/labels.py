"""Rules for class names."""

import sys
from collections import Counter
from typing import Any


def check_labels(labels: list[Any]) -> list[str]:
    """Return the problems of a list of class names; none for a valid one.

    A label is one line of `labels.txt` and appears in every report: it must be text, not empty, unique, and have no control
    characters or surrounding blanks.
    """
    if not all(isinstance(label, str) for label in labels):
        return ["labels must be text"]
    if undecodable := [label for label in labels if any("\ud800" <= character <= "\udfff" for character in label)]:
        encoding = sys.getfilesystemencoding()
        remedy = "" if encoding == "utf-8" else "; set LC_ALL=C.UTF-8"
        return [f"label {label!a} is not text in this system's encoding, {encoding}{remedy}" for label in undecodable]
    problems = [
        f"label {label!r} is empty, has surrounding blanks, or has a control character"
        for label in labels
        if not label or label != label.strip() or not label.isprintable()
    ]
    if len(labels) < 2:
        problems.append(f"labels must be at least 2, got {len(labels)}")
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        problems.append(f"duplicate labels: {', '.join(repeated)}")
    return problems
