"""A crawl becomes training text: read, sift, mask, find duplicates, keep the best, and account for every dropped page."""
