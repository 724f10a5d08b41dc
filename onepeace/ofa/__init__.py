"""Network of OFA (arXiv 2202.03052), which reads a picture and a text and writes ids of one vocabulary."""
