"""Recorded steps: replay with priorities, the memories of individuals, offline data."""
