"""Integrations with other libraries, one module each; its docstring shows how to use it."""
