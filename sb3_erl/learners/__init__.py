"""Gradient rules: a batch in, metrics out."""
