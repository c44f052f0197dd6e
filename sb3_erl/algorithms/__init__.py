"""One file per published system: which parts, which defaults, which deviations from the authors' code."""
