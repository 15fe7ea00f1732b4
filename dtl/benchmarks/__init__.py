"""Benchmarks: what DTL does beside what its peers do, on the same input, taking turns."""
