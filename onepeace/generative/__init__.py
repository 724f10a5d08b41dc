"""Models that write: captions, answers, boxes and image codes (OFA, arXiv 2202.03052)."""
