"""Measuring speed and size: `onepeace bench` and the numbers of `onepeace info`."""
