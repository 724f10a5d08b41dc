"""The terms of an objective, one file each; `known.TERMS` lists them."""
