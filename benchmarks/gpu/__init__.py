"""The proof for a machine with a GPU: one command, one report, at most eight minutes."""
