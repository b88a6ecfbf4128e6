"""Benchmarks that a reader can check: contenders side by side in one process, raw samples kept, wrong answers refused."""
