"""EAGLE: a decoder layer that continues the target's own features."""
