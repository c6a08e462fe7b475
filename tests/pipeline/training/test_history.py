import math

import pytest

from edgeline.pipeline.training.history import Fit, check_finite
from edgeline.serve.errors import TrainingError


def fit_of(*val_losses: float) -> tuple[Fit, list[bool]]:
    fit = Fit()
    return fit, [fit.add(train_loss=1.0, val_loss=loss, val_accuracy=0.5) for loss in val_losses]


def test_an_epoch_is_best_where_validation_improved() -> None:
    fit, best = fit_of(0.9, 0.5, 0.7, 0.4, 0.4)
    assert best == [True, True, False, True, False]
    assert (fit.best_epoch, fit.best_loss) == (4, 0.4)
    assert fit.history[1] == {"train_loss": 1.0, "val_loss": 0.5, "val_accuracy": 0.5}


def test_a_hair_is_no_improvement() -> None:
    assert fit_of(0.5, 0.49995, 0.4998)[1] == [True, False, True]


def test_training_is_over_after_so_many_epochs_without_a_better_one() -> None:
    fit = Fit()
    over = []
    for loss in (0.9, 0.5, 0.6, 0.6, 0.6):
        fit.add(1.0, loss, 0.5)
        over.append(fit.should_stop(patience=3))
    assert over == [False, False, False, False, True]


NO_NUMBERS = {"NaN": math.nan, "infinite": math.inf, "minus infinite": -math.inf}


@pytest.mark.parametrize("loss", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_a_loss_that_is_no_number_stops_with_its_epoch(loss: float) -> None:
    with pytest.raises(TrainingError, match=r"in epoch 7; lower train\.learning_rate") as refusal:
        check_finite(loss, 7)
    assert refusal.value.code == "loss_not_finite"


@pytest.mark.parametrize("losses", [(math.nan, 0.5), (0.5, math.inf)])
def test_an_epoch_without_a_finite_loss_is_not_recorded(losses: tuple[float, float]) -> None:
    fit, _ = fit_of(0.9, 0.5)
    with pytest.raises(TrainingError, match="in epoch 3"):
        fit.add(*losses, val_accuracy=0.5)
    assert (len(fit.history), fit.best_epoch) == (2, 2)
