"""The command line, training from Python, and the pipeline as a Prefect flow."""

if not __name__.startswith("edgeline."):
    raise ImportError("import edgeline.flows instead of flows; all packages are below edgeline")
