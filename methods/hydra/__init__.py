"""Hydra: sequentially dependent decoding heads."""
