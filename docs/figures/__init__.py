"""The figures in docs/images, drawn from the code and from recorded answers."""
