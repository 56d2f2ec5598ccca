"""fledge raises a language model: crawled text, pretraining, SFT, human feedback, and a model people talk to."""

__version__ = "0.1.0"
