"""The pipeline as a Prefect flow, its deployments and its server."""
