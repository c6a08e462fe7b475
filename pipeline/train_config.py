"""The section `train` of the configuration."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeline.pipeline.config_section import Fraction, Names, Section
from edgeline.pipeline.names import AugmentationName, StrategyName


class TrainConfig(Section):
    """Train the head, or the backbone too."""

    strategy: StrategyName = Field(
        "auto",
        description="`auto`: the best of `head`, `few-shot` and, within `budget`, `lp-ft` on held-out images; the run reports "
        "which and why. `head`: train a linear layer on the features of a frozen backbone, which are computed once. "
        "`few-shot`: the same with the mean features of each class, for a handful of images. The next ones start from the "
        "trained head. `lp-ft`: train all layers, a little more slowly towards the input. `full`: all with one learning rate. "
        "`partial`: those named in `unfreeze`. `differential`: all, much more slowly towards the input. `gradual`: the same, "
        "unfrozen one after the other from the top. `distill`: all, from the labels and from the answers of the networks in "
        "`teacher`. `scratch`: all from random weights, as a baseline.",
    )
    budget: Literal["auto"] | Annotated[float, Field(ge=0)] = Field(
        "auto",
        description="`strategy=auto`: minutes of training that the layers below the head may take, by its estimate. `auto`: "
        "none on a CPU, no limit on a GPU.",
    )
    unfreeze: Names = Field(
        (), description='`partial`: the stages to train besides the head, such as `["blocks.5", "blocks.6"]`.'
    )
    teacher: Names = Field(
        (),
        description="`distill`: what teaches, one or more: the folder of a run on the same classes, or the name of a backbone, "
        "of which a head is trained first. The mean of several is learned.",
    )
    teacher_temperature: float = Field(
        4.0,
        gt=0,
        description="`distill`: temperature of the probabilities that are learned; a higher one shows more of the "
        "similarities between classes.",
    )
    teacher_share: float = Field(
        0.7, ge=0, le=1, description="`distill`: share of the teacher in the loss; the rest is that of the labels."
    )
    unlabeled: str = Field(
        "",
        description="`distill`: folder of further photos without labels, at any depth, of which the teacher's answers are "
        "learned. Photos that are also in the validation or test split, or nearly, are left out.",
    )
    epochs: int = Field(
        0,
        ge=0,
        description="Maximum number of epochs; 0 uses the strategy's default: 200 for `head`, 40 for `scratch`, otherwise 8 "
        "or, with few images, as many passes over them as make 160 steps.",
    )
    batch_size: int = Field(
        32,
        ge=2,
        description="Images in a batch; also for `head` on cached features. A batch that does not fit into memory is split, "
        "and its gradients are accumulated.",
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimizer; `sgd` with Nesterov's momentum.")
    momentum: Fraction = Field(0.0, description="Momentum of `sgd`; 0.9 is usual.")
    schedule: Literal["cosine", "plateau"] = Field(
        "cosine",
        description="Learning rate of strategies that train layers: a warm-up, then `cosine` down to zero, or `plateau`: lower "
        "whenever the validation loss stops falling.",
    )
    learning_rate: float = Field(0.0, ge=0, description="Peak learning rate; 0 uses the strategy's default.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay; decoupled from the gradient with `adamw`.")
    clip_norm: float = Field(
        0.0, ge=0, description="Strategies that train layers: maximum norm of the gradient; 0 does not clip it."
    )
    dropout: Fraction = Field(0.5, description="Dropout probability before the last layer.")
    label_smoothing: Fraction = Field(
        0.0, description="Label smoothing of the loss: probability spread over the other classes."
    )
    mixup: float = Field(
        0.0,
        ge=0,
        description="Strategies that train layers: mix each image with another one of its batch; 0.2 is usual. Both parameters "
        "of the beta distribution of the share.",
    )
    class_weights: Literal["balanced", "sqrt", "none"] = Field(
        "balanced",
        description="Loss weight of each class: `balanced` is the inverse of its count, `sqrt` the square root of that, "
        "which helps rare classes at almost no cost to the common ones.",
    )
    sampling: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="Strategies that train layers: `shuffle` uses each image once in a pass, `balanced` draws each class "
        "equally often; then set `class_weights=none`.",
    )
    patience: int = Field(20, ge=1, description="Stop after this many epochs without a better validation loss.")
    refit: bool = Field(
        True,
        description="Train the weights that ship on train and validation together, for the number of epochs that "
        "held-out images have determined. `false`: on train alone. The temperature is always fitted on images that were not "
        "trained on.",
    )
    views: Literal["auto"] | Annotated[int, Field(ge=0, le=16)] = Field(
        "auto",
        description="`head`: augmented views of each training image, in addition to the plain one; their features are cached "
        "too. `auto`: 4 up to 500 images, 2 up to 2,000 with at most 50 in each class on average, otherwise none.",
    )
    augment: AugmentationName = Field(
        "light",
        description="Random changes of training images. `light`: crop and color. `flip`: the same and mirroring (not for "
        "digits and text). `strong`: crops down to half of the image, and two random changes of color, sharpness, shear or "
        "position. `rotate`: `flip` and quarter turns, for pictures from above or of a microscope. `none`.",
    )
    sweep: bool = Field(
        False,
        description="`head` and `auto`: compare settings of the head on held-out images: dropout, views and class weights in "
        "closed form, then the most promising ones, learning rates, weight decay and label smoothing by training. The report "
        "has the table and the plot. The configured settings stay unless others are better by more than noise.",
    )
    layer_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="`lp-ft`, `differential` and `gradual`: a stage's learning rate as a share of that of the stage above it; "
        "0 uses the strategy's default: 0.8 for `lp-ft`, otherwise 0.7.",
    )
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        "auto", description="Strategies that train layers: `auto` is float32 on a CPU and mixed float16 on a GPU."
    )
    processes: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="Strategies that train layers: processes that share each batch, started by torchrun. `auto`: one for each "
        "GPU, one on a CPU.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` uses a GPU if there is one; the checkpoint records which."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        problems = {
            "momentum is a setting of optimizer=sgd; set optimizer=sgd, or remove momentum": self.momentum
            and self.optimizer != "sgd",
            "strategy=partial needs the stages to train in unfreeze; `edgeline inspect MODEL` lists them": self.strategy
            == "partial"
            and not self.unfreeze,
            "unfreeze is a setting of strategy=partial; set strategy=partial, or remove unfreeze": self.unfreeze
            and self.strategy != "partial",
            f"sweep compares settings of the head, and strategy={self.strategy} has others; set strategy=head or strategy=auto,"
            " or remove sweep (`edgeline find-rate` finds a learning rate for the layers)": self.sweep
            and self.strategy not in ("head", "auto"),
            "schedule=plateau has no fixed length, but strategy=gradual unfreezes along one; use schedule=cosine": self.schedule
            == "plateau"
            and self.strategy == "gradual",
            "sampling=balanced and class_weights would both make up for rare classes; set class_weights=none": self.sampling
            == "balanced"
            and self.class_weights != "none",
            "strategy=distill needs one to learn from in teacher: the folder of a run, or a backbone's name": self.strategy
            == "distill"
            and not self.teacher,
            "teacher and unlabeled are settings of strategy=distill; set strategy=distill, or remove them": (
                self.teacher or self.unlabeled
            )
            and self.strategy != "distill",
            "strategy=distill caches the teacher's answers to single images; remove mixup": self.mixup
            and self.strategy == "distill",
            "sampling=balanced needs a label for each image; remove it, or remove unlabeled": self.unlabeled
            and self.sampling == "balanced",
            f"strategy={self.strategy} trains no layers and uses one process; remove processes": (
                self.processes not in ("auto", 1) and self.strategy in ("head", "few-shot")
            ),
            "strategy=scratch learns the statistics of batch norms, which would be those of each process's share of a batch; "
            "remove processes": self.processes not in ("auto", 1) and self.strategy == "scratch",
        }
        if found := [message for message, is_problem in problems.items() if is_problem]:
            raise ValueError("; ".join(found))
        return self
