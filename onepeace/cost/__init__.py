"""FLOPs and bytes of encoding and training, measured on shapes alone."""
