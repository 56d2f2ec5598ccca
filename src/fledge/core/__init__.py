"""The core: one batch, one model, one loop, one checkpoint format. Read in this order:
batch, model, objectives, optim, train, checkpoint, then config, log, runtime, parallel."""

from fledge.core.runtime import prepare_process

prepare_process()  # allocator and thread settings only count before torch is imported
