"""The former place of :mod:`hsakd_pl.cli.main`, kept for one release."""

from hsakd_pl.cli.main import main as main
