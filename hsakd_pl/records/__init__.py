"""The records of a run: the formats of its files, and the callbacks that write them and never change the run."""
