"""What runs have left in their folders, read and compared: tables, curves, a page."""
