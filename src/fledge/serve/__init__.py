"""Talking with models: the terminal chat (the page and its API come on top)."""
