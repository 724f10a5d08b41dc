"""The terms of an objective; `known.TERMS` lists them."""
