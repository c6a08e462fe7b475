"""Photos to an evaluated checkpoint. Needs torch."""

if not __name__.startswith("edgeline."):
    raise ImportError("import edgeline.pipeline instead of pipeline; all packages are below edgeline")
