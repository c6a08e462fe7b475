"""HTTP/1.1 over sockets, under deadlines and limits."""
