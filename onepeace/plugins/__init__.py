"""Integrations with other libraries, one module each; the docstring of a module shows its use."""
