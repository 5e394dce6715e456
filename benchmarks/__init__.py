"""How fast training is, beside a plain PyTorch loop measured in the same process: ``python -m benchmarks --help``."""
