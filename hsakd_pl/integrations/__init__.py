"""Other libraries made usable, where they are installed; none of them is needed."""
