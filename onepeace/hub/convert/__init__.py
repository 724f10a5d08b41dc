"""A released checkpoint becomes a model folder (`onepeace convert`); none of its code is run, no tensor left over."""
