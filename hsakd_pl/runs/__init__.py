"""The life of a run: checkpoints, signals, the lock of its folder, devices and processes."""
