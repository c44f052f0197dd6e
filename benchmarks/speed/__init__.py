"""The measurements of ``python -m benchmarks.bench``, one function each."""
