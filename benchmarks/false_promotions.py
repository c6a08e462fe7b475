"""How often `edgeline retrain` promotes a version that is worse, and one that is not: simulated from real predictions.

    python benchmarks/false_promotions.py --draws 2000

Two classifiers of digits, one trained on half of the images of the other, answer 898 images that neither has seen. A draw takes
images with replacement: as many of those that only the first, only the second, both or neither classifies correctly as give
the wanted difference in expectation. Which images they are, and so of which class, is real. Then the decision is made as
always. The simulated error of a share of 5 % from 2,000 draws is half a point.
"""

import argparse

import numpy as np
from common import report
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from edgeline.export.promotion.decision import PairedAnswers, decide
from edgeline.pipeline.config import PromoteConfig

SIZES = (300, 1000, 3000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--margin", type=float, default=PromoteConfig().margin)
    arguments = parser.parse_args()
    policy = PromoteConfig(margin=arguments.margin)
    truth_N, before_N, after_N = predictions()
    print(f"first {np.mean(before_N == truth_N):.1%}, second {np.mean(after_N == truth_N):.1%} of {len(truth_N)} images")
    rows = []
    gains = {"worse by the margin": -policy.margin, "5 points worse": -0.05, "equal": 0.0, "3 points better": 0.03}
    for size in SIZES:
        for name, gain in gains.items():
            rng = np.random.default_rng(0)
            draws = (draw((truth_N, before_N, after_N), size, gain, rng) for _ in range(arguments.draws))
            verdicts = [decide({"onnx-fp32": each}, policy).verdict for each in draws]
            shares = {each: verdicts.count(each) / len(verdicts) for each in ("better", "not worse", "worse", "too few images")}
            promoted = shares["better"] + shares["not worse"]
            rows.append({"images": size, "candidate": name, "promoted": promoted, "verdicts": shares})
            listed = ", ".join(f"{verdict} {share:.1%}" for verdict, share in shares.items())
            print(f"{size:5} images, {name:20} promoted {promoted:6.1%}   ({listed})", flush=True)
    report("false_promotions", draws=arguments.draws, margin=policy.margin, confidence=policy.confidence, rows=rows)


def predictions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True labels of held-out digits, and what the two classifiers answer."""
    pixels_ND, labels_N = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels_N))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    models = [
        LogisticRegression(max_iter=1000).fit(pixels_ND[rows] / 16, labels_N[rows])
        for rows in (train[: len(train) // 2], train)
    ]
    return (labels_N[test], *(model.predict(pixels_ND[test] / 16) for model in models))


def draw(answers: tuple[np.ndarray, np.ndarray, np.ndarray], size: int, gain: float, rng: np.random.Generator) -> PairedAnswers:
    """Draw images so that the second classifier's accuracy is expected to be higher by `gain`."""
    truth_N, before_N, after_N = answers
    changed_N = (before_N == truth_N) != (after_N == truth_N)
    changed = max(abs(gain), float(changed_N.mean()))
    counts = rng.multinomial(size, [1 - changed, (changed - gain) / 2, (changed + gain) / 2])
    same, other = np.flatnonzero(~changed_N), np.flatnonzero(changed_N)
    rows = np.concatenate([rng.choice(pool, count) for pool, count in zip((same, other, other), counts, strict=True)])
    truth, both = [str(label) for label in truth_N[rows]], [str(label) for label in before_N[rows]]
    lost = slice(counts[0], counts[0] + counts[1])
    before, after = both.copy(), both.copy()
    before[counts[0] :], after[counts[0] :] = ["wrong"] * int(counts[1:].sum()), truth[counts[0] :]
    before[lost], after[lost] = truth[lost], ["wrong"] * int(counts[1])
    return PairedAnswers(truth=truth, before=before, after=after, groups=[str(i) for i in range(size)])


if __name__ == "__main__":
    main()
