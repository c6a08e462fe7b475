"""Other runtimes' formats, each made in an environment of its own."""
