"""The numerical heart: arrays in, frozen results out; no files, no configs."""
