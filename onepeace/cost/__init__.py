"""What encoding and training take, FLOPs and bytes, measured on shapes alone."""
