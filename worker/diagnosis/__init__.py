"""Collects into one file what a bug report needs, without secrets."""
