"""Tables, curves and pages from the files of runs."""

TABLE_FORMATS = ("table", "md", "latex", "csv", "json")
