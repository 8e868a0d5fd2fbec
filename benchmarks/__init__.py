"""Benchmarks. Each prints ratios whose two sides were timed in the same run; `python -m benchmarks` runs all."""
