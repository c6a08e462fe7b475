"""Tests of orchestration. A package, because its Prefect server is a fixture of package scope."""
