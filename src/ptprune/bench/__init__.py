"""Benchmarks: how fast a pruned model is, and how right its answers stay."""
