"""The CPU: what PyTorch needs to know before it is imported, the cores that may be used, and the kind of the CPU."""
