"""3x3 convolutions on a CPU by Winograd's algorithm, which takes a quarter of the multiplications."""

from hsakd_pl.fast.winograd.layers import convert as convert
from hsakd_pl.fast.winograd.layers import revert as revert
