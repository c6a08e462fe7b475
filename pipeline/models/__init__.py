"""Backbones, weights and checkpoints."""
