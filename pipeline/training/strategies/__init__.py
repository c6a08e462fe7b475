"""The training strategies: each module has a function `fit` from `TrainingContext` to `TrainingResult`."""
