"""Fuzz the package's readers with damaged, forged and hostile files."""
