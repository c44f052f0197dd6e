"""Fitness: from episodes to one number per candidate."""
