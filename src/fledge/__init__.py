"""fledge raises a language model: crawled text, pretraining, SFT, human feedback, and a model people talk to."""


from fledge.core.runtime import prepare_process

__version__ = "0.1.0"

prepare_process()  # allocator and thread settings only count before anything imports torch
