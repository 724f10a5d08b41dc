"""Token ids that are the same in every vocabulary of this library, as in RoBERTa."""

BOS, PAD, EOS, UNK = range(4)
"""Start of a text, padding, end of a text, unknown piece."""
