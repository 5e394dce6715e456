"""All that only makes a fit fast. Without it every number stays the same up to rounding (``fast=False``)."""

from hsakd_pl.fast.callback import Fast

__all__ = ["Fast"]
