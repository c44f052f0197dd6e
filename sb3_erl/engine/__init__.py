"""Training loops, written once: generations of hybrids and of pure evolution, and step-wise learners."""
