"""Speed benchmarks: ``python docs/results/bench.py``."""
