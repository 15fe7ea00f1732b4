"""Benchmarks of DTL and its peers on the same input, in alternating rounds."""
