"""Generation: the engine with its KV cache, sampling, and answers to conversations."""
