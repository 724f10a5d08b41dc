"""Speed benchmarks: ``python -m onepeace.bench``."""
