import numpy as np
import pytest
import torch

from edgeline.pipeline.training.folds import NEVER
from edgeline.pipeline.training.heads import HeadData
from edgeline.pipeline.training.search import scan
from edgeline.pipeline.training.search.scan import STRENGTHS, Penalty, sample_images, scan_penalty

WEIGHTS = {"configured": torch.tensor([1.0, 0.5, 2.0])}


def three_classes(images: int, features: int, *, views: int = 1) -> HeadData:
    """Overlapping classes in four folds; three images are never held out."""
    rng = np.random.default_rng(0)
    targets_M, folds_M = np.arange(images) % 3, np.arange(images) // 3 % 4
    centers = rng.normal(size=(3, features))
    scale = rng.uniform(0.2, 5, features)
    tables = [
        ((centers[targets_M] + 2 * rng.normal(size=(images, features))) * scale).astype(np.float32) for _ in range(views + 1)
    ]
    folds_M[:3] = NEVER
    return HeadData(tables=tables, targets_M=targets_M, folds_M=folds_M)


def explicit(data: HeadData, penalty: Penalty, strength: float, fold: int) -> np.ndarray:
    """The held-out scores of one fold by a plain linear solve, with the intercept as a feature without a penalty."""
    rows_RD = np.concatenate(data.tables).astype(np.float64)
    rows_RD -= rows_RD[: len(data.targets_M)].mean(0)
    variance_D = (rows_RD**2).mean(0)
    targets_R, folds_R = np.tile(data.targets_M, len(data.tables)), np.tile(data.folds_M, len(data.tables))
    learned_R = folds_R != fold
    weights_R = WEIGHTS["configured"].numpy()[targets_R[learned_R]]
    ones_RE = np.c_[rows_RD[learned_R], np.ones(learned_R.sum())]
    of_each_D = (
        variance_D * strength / (1 - strength)
        if penalty == "dropout"
        else np.full(len(variance_D), variance_D.mean() * strength)
    )
    gram_EE = (ones_RE * weights_R[:, None]).T @ ones_RE / weights_R.sum() + np.diag([*of_each_D, 0])
    moments_EK = (ones_RE * weights_R[:, None]).T @ np.eye(3)[targets_R[learned_R]] / weights_R.sum()
    held = rows_RD[: len(data.targets_M)][data.folds_M == fold]
    return np.asarray(np.c_[held, np.ones(len(held))] @ np.linalg.solve(gram_EE, moments_EK))


@pytest.mark.parametrize("features", [8, 300], ids=["more rows than features", "more features than rows"])
@pytest.mark.parametrize("penalty", ["dropout", "ridge"])
def test_the_scan_predicts_what_an_explicit_solution_of_each_fold_predicts(penalty: Penalty, features: int) -> None:
    data = three_classes(90, features)
    predicted_SN = scan_penalty(data, penalty, WEIGHTS)["configured"]
    folds_N = data.folds_M[data.folds_M != NEVER]
    assert predicted_SN.shape == (len(STRENGTHS[penalty]), 87)
    for position in (5, 12, 20):
        for fold in range(4):
            scores_HK = explicit(data, penalty, float(STRENGTHS[penalty][position]), fold)
            assert (predicted_SN[position][folds_N == fold] == scores_HK.argmax(1)).all()
    assert features == 300 or len({row.tobytes() for row in predicted_SN}) > 3  # the strength matters here


def test_a_penalty_like_dropout_does_not_depend_on_the_scale_of_single_features() -> None:
    data = three_classes(90, 8)
    scaled = HeadData(
        tables=[table * np.geomspace(0.1, 10, 8, dtype=np.float32) for table in data.tables],
        targets_M=data.targets_M,
        folds_M=data.folds_M,
    )
    same, other = (
        scan_penalty(scaled, penalty, WEIGHTS)["configured"] == scan_penalty(data, penalty, WEIGHTS)["configured"]
        for penalty in STRENGTHS
    )
    assert same.all()
    assert not other.all()


def test_a_held_out_image_does_not_influence_its_own_prediction() -> None:
    data = three_classes(90, 300, views=2)
    changed_M = data.targets_M.copy()
    changed_M[20] = (changed_M[20] + 1) % 3
    other = HeadData(tables=data.tables, targets_M=changed_M, folds_M=data.folds_M)
    same_SN = scan_penalty(data, "ridge", WEIGHTS)["configured"] == scan_penalty(other, "ridge", WEIGHTS)["configured"]
    folds_N = data.folds_M[data.folds_M != NEVER]
    assert same_SN[:, folds_N == data.folds_M[20]].all()


def test_of_very_many_images_a_part_is_scanned_with_their_views(monkeypatch: pytest.MonkeyPatch) -> None:
    data = three_classes(90, 8, views=2)
    monkeypatch.setattr(scan, "MAX_ROWS", 120)
    part = sample_images(data, 0)
    assert [table.shape for table in part.tables] == [(40, 8)] * 3
    position = {row.tobytes(): number for number, row in enumerate(data.tables[0])}
    kept = [position[row.tobytes()] for row in part.tables[0]]
    assert kept == sorted(kept)
    np.testing.assert_array_equal(part.tables[2], data.tables[2][kept])
    np.testing.assert_array_equal(part.targets_M, data.targets_M[kept])
    monkeypatch.setattr(scan, "MAX_ROWS", 270)
    assert sample_images(data, 0) is data
