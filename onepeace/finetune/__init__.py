"""Fine-tuning on a user's own files: recognised, checked, split, trained, measured before and after (`finetune`)."""
