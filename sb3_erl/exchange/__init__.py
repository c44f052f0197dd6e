"""Traffic of parameters between learner and population."""
