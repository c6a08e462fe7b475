"""Does the time of a token's comparison reveal how much of the token is right?

Tokens that differ from the valid one in the first, the middle or the last byte, each time by another byte, and tokens of twice
its length, are checked in random order, `--samples` times each, by the server's own function. Reported are the difference in
nanoseconds of each kind's median from that of a wrong first byte, and the rank test of Mann and Whitney (1947) between them,
which is too strict on a processor that changes its speed. A leak would be a difference above the clock's resolution that
persists from run to run, for tokens of the same length. The valid token's time is shown too; that it is valid is not a secret.
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
    # Shuffled before they are created, so that their order in memory is the same.
    trials = [(kind, b"Bearer " + token_of(kind, choice)) for kind in order]
    times_N = np.zeros(len(trials), np.int64)  # one array for all kinds: separate lists would be at different places in memory
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokens")
        path.write_text(f"another-token-of-another-client\n{GOOD}\n")
        tokens = Tokens(path)
        for index, (_, header) in enumerate(trials):
            credentials = [header]
            begun = time.perf_counter_ns()
            tokens.accept(credentials)
            times_N[index] = time.perf_counter_ns() - begun
        assert all(tokens.accept([header]) == (kind == "good") for kind, header in trials[:100])
    times = {kind: times_N[[each == kind for each, _ in trials]] for kind in kinds}
    base = float(np.median(times["first byte"]))
    rows = {
        kind: {"ns": float(np.median(each)) - base, "p": float(mannwhitneyu(times["first byte"], each).pvalue)}
        for kind, each in times.items()
        if kind != "first byte"
    }
    print(json.dumps(rows), flush=True)
    report("token_timing", samples=samples, median_ns=base, difference_from_first_byte=rows)


def token_of(kind: str, choice: random.Random) -> bytes:
    """Return a token of a kind; wrong ones differ by a random byte, so that not one token's place in memory is timed."""
    places = {"first byte": 0, "middle byte": len(GOOD) // 2, "last byte": len(GOOD) - 1}
    if kind not in places:
        return (GOOD * 2 if kind == "twice as long" else GOOD).encode()
    place = places[kind]
    other = choice.choice([each for each in string.ascii_letters + string.digits if each != GOOD[place]])
    return (GOOD[:place] + other + GOOD[place + 1 :]).encode()


if __name__ == "__main__":
    main()
