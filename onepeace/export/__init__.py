"""Export of one modality of a model: ONNX, in float32 or int8, or torch.export.

`folder` writes the files with all that a program needs to run them; `text_branch` keeps the text branch in the cache.
"""
