"""The version of the package, which setup.cfg and the records of a run read."""

__version__ = "0.3.0"
