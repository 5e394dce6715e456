"""What runs have left in their folders, read and compared: tables, curves, a page."""

TABLE_FORMATS = ("table", "md", "latex", "csv", "json")  # in which a table can be written
