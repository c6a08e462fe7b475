import math

import pytest

from edgeline.pipeline.training.history import TrainingHistory, check_finite
from edgeline.serve.errors import TrainingError


def history_of(*val_losses: float) -> tuple[TrainingHistory, list[bool]]:
    history = TrainingHistory()
    return history, [history.add(train_loss=1.0, val_loss=loss, val_accuracy=0.5) for loss in val_losses]


def test_an_epoch_is_best_if_the_validation_loss_improves() -> None:
    history, best = history_of(0.9, 0.5, 0.7, 0.4, 0.4)
    assert best == [True, True, False, True, False]
    assert (history.best_epoch, history.best_loss) == (4, 0.4)
    assert history.epochs[1] == {"train_loss": 1.0, "val_loss": 0.5, "val_accuracy": 0.5}


def test_a_tiny_decrease_of_the_loss_is_not_an_improvement() -> None:
    assert history_of(0.5, 0.49995, 0.4998)[1] == [True, False, True]


def test_training_stops_after_patience_epochs_without_improvement() -> None:
    history = TrainingHistory()
    stops = []
    for loss in (0.9, 0.5, 0.6, 0.6, 0.6):
        history.add(1.0, loss, 0.5)
        stops.append(history.should_stop(patience=3))
    assert stops == [False, False, False, False, True]


NOT_FINITE = {"NaN": math.nan, "infinite": math.inf, "minus infinite": -math.inf}


@pytest.mark.parametrize("loss", NOT_FINITE.values(), ids=NOT_FINITE)
def test_a_loss_that_is_not_finite_is_rejected_with_its_epoch(loss: float) -> None:
    with pytest.raises(TrainingError, match=r"in epoch 7; lower train\.learning_rate") as caught:
        check_finite(loss, 7)
    assert caught.value.code == "loss_not_finite"


@pytest.mark.parametrize("losses", [(math.nan, 0.5), (0.5, math.inf)])
def test_an_epoch_without_a_finite_loss_is_not_recorded(losses: tuple[float, float]) -> None:
    history, _ = history_of(0.9, 0.5)
    with pytest.raises(TrainingError, match="in epoch 3"):
        history.add(*losses, val_accuracy=0.5)
    assert (len(history.epochs), history.best_epoch) == (2, 2)
