"""The embedded bilingual micro-world: a fully known source of text, conversations, preferences and test questions.

Read in this order: config, names, relations, facts; then pages, chats, pairs, questions, gold; `world` ties them together.
"""

from fledge.world.config import WorldConfig
from fledge.world.world import World

__all__ = ["World", "WorldConfig"]
