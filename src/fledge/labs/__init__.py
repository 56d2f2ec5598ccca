"""Published claims as experiments: each file says its question, builds its arms from the public API, measures and draws."""
