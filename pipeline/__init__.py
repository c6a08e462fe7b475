"""Photos to an evaluated checkpoint. Needs torch."""

if not __name__.startswith("edgeline."):
    raise ImportError("import edgeline.pipeline instead of pipeline: edgeline's packages have one name, below edgeline")
