"""Benchmarks: ratios against peers in one run, for whoever wants to see for themselves."""
