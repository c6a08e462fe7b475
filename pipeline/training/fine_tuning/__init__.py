"""Train the layers of the backbone, not only the head."""
