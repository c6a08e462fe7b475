"""Verify an artifact on this machine, then classify photos; needs `pip install edgeline` and nothing else.

python with_edgeline.py FOLDER VARIANT [PHOTO...]
"""

import sys
from pathlib import Path

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import EdgelineError


def main(folder: str, variant: str, *photos: str) -> None:
    """Print the result of the golden samples, and the best class of each photo."""
    classifier = Classifier.open(folder, variant=variant)  # every file's SHA-256, the graph's contract, the golden samples
    print(classifier.self_test)
    for photo in photos:
        [[best]] = classifier.predict([Path(photo).read_bytes()], top_k=1)
        print(photo, best.label, f"{best.probability:.6g}", sep="\t")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (EdgelineError, OSError) as error:
        sys.exit(str(error))
