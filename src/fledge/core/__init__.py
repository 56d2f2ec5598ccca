"""The core: one batch, one model, one loop, one checkpoint format. Read in this order:
batch, model, objectives, optim, train, checkpoint, then kernels, config, log, runtime, parallel."""
