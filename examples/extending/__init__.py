"""Parts of your own, one file each: ``python -m examples.extending.crossover``. See ``docs/extending.md``."""
