"""OFA (arXiv 2202.03052): one model that reads a picture and a text, and writes text or boxes."""
