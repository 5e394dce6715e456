"""What a run writes and shows: the formats of its files, and the callbacks that write them and change nothing."""
