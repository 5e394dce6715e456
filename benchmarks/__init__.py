"""The speed and memory of training, compared with a plain PyTorch loop and with earlier commits.

``python -m benchmarks --help`` lists the options, ``README.md`` explains the numbers, and ``results/`` keeps them by
device. Processes that take turns do the work: ``worker``, ``loops``, ``plain`` and ``measuring`` run in them, the other
modules here, without PyTorch.
"""
