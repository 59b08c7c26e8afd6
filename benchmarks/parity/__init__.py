"""The pictures of the embedded engine and of a real A1111, compared."""
