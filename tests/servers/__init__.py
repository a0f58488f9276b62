"""Real servers for the tests and the benchmarks, each a context manager on a free local port."""
