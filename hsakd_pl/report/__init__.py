"""Tables, curves and pages from the files of runs."""
