"""Batch norms on a CPU in one operation with the addition and the ReLU after them."""

from hsakd_pl.fast.norms.layers import convert as convert
from hsakd_pl.fast.norms.layers import revert as revert
