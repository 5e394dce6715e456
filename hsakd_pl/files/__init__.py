"""Files of the user's and of others: found where they say, read without trust, written whole or not at all."""

from hsakd_pl.files.text import cache_folder, local_path, naming, read_text, replacing

__all__ = ["cache_folder", "local_path", "naming", "read_text", "replacing"]
