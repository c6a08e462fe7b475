"""Does the time that a token's comparison takes tell how much of it is right?

Tokens that differ from the good one in the first byte, in the middle or in the last, by another byte each time, and ones of
twice its length, in random order, each `--samples` times, through the very check that the server makes. Told is by how many
nanoseconds each kind's median differs from that of a wrong first byte, and the rank test of Mann and Whitney (1947) between
them, which a processor that changes its speed makes too strict. A finding would be a difference above the clock's step that
stays from run to run, of tokens of the same length. The good token's own time is shown too; that it is good is no secret.
"""

import argparse
import json
import random
import string
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import report
from scipy.stats import mannwhitneyu

from edgeline.serve.http.auth import Tokens

GOOD = "edgeline-benchmark-token-0123456789abcdef"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    samples = parser.parse_args().samples
    choice = random.Random(0)
    kinds = ("first byte", "middle byte", "last byte", "twice as long", "good")
    order = [kind for kind in kinds for _ in range(samples)]
    choice.shuffle(order)
    # Shuffled before they are made, so that they lie in memory in that order too.
    asked = [(kind, b"Bearer " + token_of(kind, choice)) for kind in order]
    taken_N = np.zeros(len(asked), np.int64)  # one array for all kinds: a list each would be in a place of memory each
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokens")
        path.write_text(f"another-token-of-another-client\n{GOOD}\n")
        tokens = Tokens(path)
        for index, (_, header) in enumerate(asked):
            credentials = [header]
            begun = time.perf_counter_ns()
            tokens.accept(credentials)
            taken_N[index] = time.perf_counter_ns() - begun
        assert all(tokens.accept([header]) == (kind == "good") for kind, header in asked[:100])
    times = {kind: taken_N[[each == kind for each, _ in asked]] for kind in kinds}
    base = float(np.median(times["first byte"]))
    rows = {
        kind: {"ns": float(np.median(each)) - base, "p": float(mannwhitneyu(times["first byte"], each).pvalue)}
        for kind, each in times.items()
        if kind != "first byte"
    }
    print(json.dumps(rows), flush=True)
    report("token_timing", samples=samples, median_ns=base, beside_first_byte=rows)


def token_of(kind: str, choice: random.Random) -> bytes:
    """A token of a kind; wrong ones are wrong by another byte each time, or what is timed were one token's place in memory."""
    places = {"first byte": 0, "middle byte": len(GOOD) // 2, "last byte": len(GOOD) - 1}
    if kind not in places:
        return (GOOD * 2 if kind == "twice as long" else GOOD).encode()
    place = places[kind]
    other = choice.choice([each for each in string.ascii_letters + string.digits if each != GOOD[place]])
    return (GOOD[:place] + other + GOOD[place + 1 :]).encode()


if __name__ == "__main__":
    main()
