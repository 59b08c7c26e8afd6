"""The rivals and the hosts of the rows, each a program or a process of its own."""
