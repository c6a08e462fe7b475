"""The faults that are planted to see whether the gate notices them."""
