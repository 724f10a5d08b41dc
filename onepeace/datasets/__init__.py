"""Sources of training samples: tables, data sets and folders of users (pairs.py), and layouts of public datasets.

A layout (layout.py) is a Python file outside the package that reads one dataset as it is downloaded; recipes/layouts
has those of our recipes.
"""
