"""Export of one modality of a model: ONNX, in float32 or int8, or torch.export.

`folder` writes the files and everything a program needs to run them; `text_branch` caches the text branch.
"""
