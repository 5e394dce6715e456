"""All that knows folders, YAML, seeds and SLURM: the commands of ``hsakd``."""
