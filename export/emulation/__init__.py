"""Other processors and older runtimes, emulated."""
