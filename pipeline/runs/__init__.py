"""Cached steps and atomic files."""
