"""Published versions in other registries: MLflow's model registry, and repositories in the layout of Hugging Face."""
