"""Models and data that other tools made, and ours for them: Hugging Face checkpoints, adapters, GGUF, lm-eval."""
