"""Downloads one file over HTTP: verified, in parallel, and resumed after an interruption."""
