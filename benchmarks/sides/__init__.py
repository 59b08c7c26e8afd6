"""Rivals and hosts of the rows, as processes or objects of their own."""
