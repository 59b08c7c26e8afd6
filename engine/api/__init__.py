"""A1111's routes: what a request may ask for, the answer, progress and options."""
