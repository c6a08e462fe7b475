"""The HTTP server: routes, limits, security."""
