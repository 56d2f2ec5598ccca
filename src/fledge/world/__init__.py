"""The embedded bilingual micro-world: a fully known source of text, conversations, preferences and test questions."""
