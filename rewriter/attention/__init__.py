"""Finding attention blocks: from each Softmax up to query and key, down to value."""
