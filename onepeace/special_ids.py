"""The ids that mean the same in every vocabulary of this library, as in RoBERTa's."""

BOS, PAD, EOS, UNK = range(4)
"""Start of a text, padding, its end, a piece that is not in the vocabulary."""
