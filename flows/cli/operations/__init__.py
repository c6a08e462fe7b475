"""Commands for models in use: retrain, promote, roll back, monitor, deploy."""
