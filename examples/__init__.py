"""Short runnable scripts, one idea each: ``python -m examples.quickstart``."""
