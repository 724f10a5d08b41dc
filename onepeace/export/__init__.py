"""One modality of a model as a file of its own: ONNX, in float32 or int8, or torch.export.

`folder` writes such files with what else a program needs to run them; `text_branch` keeps the one for texts in the
user's cache.
"""
