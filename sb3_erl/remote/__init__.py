"""The same episodes in other processes or on a Ray cluster."""
