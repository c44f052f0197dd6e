"""Updates as compiled programs."""
