"""The HTTP service: connections, routes, and the engine behind them."""
