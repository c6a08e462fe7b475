"""Search of settings: the sweep of the head, and the learning-rate finder."""
