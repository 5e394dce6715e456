"""Files of the user's and of others: found where they say, read without trust, written whole or not at all."""

from hsakd_pl.files.text import local_path, read_text, replacing

__all__ = ["local_path", "read_text", "replacing"]
