"""The sides of the rows: rivals, hosts and clients that run in processes of their own."""
