"""Benchmarks through lmms-eval: the model that it drives, the suites, and the tables that come of them."""
