"""What Python and notebooks have beyond the command: a model in the hand, rows in memory as data, charts."""
