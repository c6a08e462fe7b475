"""The `edgeline` command line."""
