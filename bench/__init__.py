"""Roobench: compare speculative decoding methods on your own device and believe the result."""

__version__ = "0.2.0"
