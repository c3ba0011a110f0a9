"""Benchmarks, each a module that prints one JSON line of ratios and counts."""
