"""Order, schedules and the command line. Prefect lives only here."""
