"""One page of results, written from the documents of the benchmarks; nothing on it is typed by hand."""
