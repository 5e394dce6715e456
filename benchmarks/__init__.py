"""How fast training is, beside a plain PyTorch loop measured in the same process: ``python -m benchmarks --help``.

``results/`` keeps numbers by device, with the versions and the commit that made them.
"""
