"""What many runs say together: rows that may be compared, as a table, as curves and as a page."""
