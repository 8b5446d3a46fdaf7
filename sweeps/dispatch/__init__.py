"""From a plan to trained runs: jobs on this machine or on SLURM, their workers, and what has become of each point."""
