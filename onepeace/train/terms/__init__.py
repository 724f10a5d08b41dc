"""The terms of an objective; `registry.TERMS` lists them."""
