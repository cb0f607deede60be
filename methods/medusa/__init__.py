"""Medusa: several decoding heads."""
