"""Models of open_clip, transformers and sentence-transformers as towers of one space; they give vectors only."""
