"""Measuring speed: ``python -m onepeace.bench``."""
