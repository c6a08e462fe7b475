"""Faults that tests plant, to show that verification finds them."""
