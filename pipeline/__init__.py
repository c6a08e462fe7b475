"""Photos to an evaluated checkpoint. torch lives here and in export/."""
