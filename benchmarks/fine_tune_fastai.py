"""The part of `fine_tune.py` that runs in the environment of fastai.

    python fine_tune_fastai.py FOLDER EPOCHS frozen|all

Prints seconds since the start and validation accuracy after each epoch, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import fastai.callback.progress  # these two add `no_bar`, `fine_tune` and `fit_one_cycle` to Learner
import fastai.callback.schedule  # noqa: F401
import pandas
import timm
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import params, set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import Normalize
from fastai.vision.data import ImageDataLoaders
from safetensors.torch import load_file
from torch import nn


class Timer(Callback):
    """Records the curve."""

    def __init__(self, start: float) -> None:
        self.start, self.curve = start, []

    def after_epoch(self) -> None:
        """Called by fastai; the log is: epoch, training loss, validation loss, accuracy."""
        self.curve.append((time.perf_counter() - self.start, float(self.learn.recorder.log[3])))


def main() -> None:
    folder, epochs, frozen = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "frozen"
    set_seed(0)
    start = time.perf_counter()
    table = pandas.DataFrame(json.loads((folder / "files.json").read_text()), columns=["path", "label", "split"])
    table["is_valid"] = table.split == "val"
    loaders = ImageDataLoaders.from_df(
        table,
        path="/",
        valid_col="is_valid",
        item_tfms=Resize(256),
        batch_tfms=[*aug_transforms(size=224), Normalize.from_stats([0.5] * 3, [0.5] * 3, cuda=False)],
        bs=32,
        num_workers=2,
    )
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    backbone.load_state_dict(load_file(folder / "backbone.safetensors"))
    model = nn.Sequential(backbone, nn.Linear(1280, loaders.c))
    timer = Timer(start)
    learner = Learner(
        loaders,
        model,
        loss_func=CrossEntropyLossFlat(),
        metrics=accuracy,
        splitter=lambda model: [params(model[0]), params(model[1])],
        cbs=[timer],
    )
    with learner.no_bar(), learner.no_logging():
        if frozen:
            learner.freeze()
            learner.fit_one_cycle(epochs, 2e-3)
        else:
            learner.fine_tune(epochs - 1, 2e-3)  # one epoch with the backbone frozen comes first
    print(json.dumps(timer.curve))


if __name__ == "__main__":
    main()
