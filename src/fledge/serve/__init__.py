"""Talking with models: the page and its API, OpenAI's /v1, and the chat in the terminal."""
