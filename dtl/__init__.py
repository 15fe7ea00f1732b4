"""DTL: the laboratory bench for small language models on one consumer GPU."""

__version__ = "0.1.0"
