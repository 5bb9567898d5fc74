"""Model files: weights, names of tensors, folders that are written whole or not at all, the Hugging Face Hub."""
