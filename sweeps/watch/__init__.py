"""A sweep while it runs: what it looks like at a glance, and what its points say so far."""
