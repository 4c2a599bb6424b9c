"""Benchmarks: contestants in turn within one run, ratios with their spread. Nothing here is a test."""
