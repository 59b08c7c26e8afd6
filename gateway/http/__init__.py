"""HTTP itself: sockets, connections, heads and bodies of requests, who may use the server."""
