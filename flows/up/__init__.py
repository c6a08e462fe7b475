"""Everything that a team on one machine needs, started by one command: `edgeline up`."""
