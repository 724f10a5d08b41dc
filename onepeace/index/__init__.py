"""Search over many files: what is kept of them, and how they are ranked. Nothing here loads torch before it embeds."""
