"""What edgeline sets up on a Prefect server: deployments, their schedules, and automations."""
