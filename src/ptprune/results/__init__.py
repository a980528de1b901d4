"""Results of every benchmark: typed rows, one file format, one kind of table."""
