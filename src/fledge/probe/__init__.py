"""What a model knows and how a stage changed it, read from its distributions."""
