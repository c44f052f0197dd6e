"""Episodes in, one score per candidate out; higher is better."""
