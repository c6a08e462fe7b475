"""What is done with models in use: retrain, teach a class, monitor, remove what nothing needs."""
