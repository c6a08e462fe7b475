"""Experiments: a grid of settings over the same split, their comparison, and the page that shows it."""
