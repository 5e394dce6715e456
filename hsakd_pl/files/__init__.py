"""Read untrusted files, and write files completely or not at all."""

from hsakd_pl.files.text import cache_folder, local_path, naming, read_text, replacing

__all__ = ["cache_folder", "local_path", "naming", "read_text", "replacing"]
