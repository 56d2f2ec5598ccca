"""The stages: a page each, wiring a source of batches to an objective."""
