"""Faster implementations for a fit; ``fast=False`` gives the same numbers up to rounding."""

from hsakd_pl.fast.callback import Fast

__all__ = ["Fast"]
