"""Statistics of images and predictions, and their distance from a reference."""
