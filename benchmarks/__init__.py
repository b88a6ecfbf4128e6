"""Benchmarks that a reader can check: contenders by turns in one process, raw samples kept, wrong answers refused."""
