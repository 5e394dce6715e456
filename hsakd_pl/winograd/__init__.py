"""3x3 convolutions on a CPU by Winograd's algorithm, with a quarter of the multiplications."""

from hsakd_pl.winograd.layers import WinogradConv2d as WinogradConv2d
from hsakd_pl.winograd.layers import set_winograd as set_winograd
