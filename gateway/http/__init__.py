"""What happens at the edge of the server: sockets, heads of requests, logins."""
