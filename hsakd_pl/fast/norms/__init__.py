"""Batch norms on a CPU in one operation with the addition and the ReLU after them."""

from hsakd_pl.fast.norms.blocks import convert as convert
from hsakd_pl.fast.norms.blocks import revert as revert
