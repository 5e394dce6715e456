"""The speed of training, compared with a plain PyTorch loop in the same process: ``python -m benchmarks --help``.

``results/`` keeps numbers by device, with versions and commit.
"""
