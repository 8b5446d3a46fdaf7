"""One training run: shape, data, model, schedule, loop, checkpoints and the run folder it leaves behind."""
