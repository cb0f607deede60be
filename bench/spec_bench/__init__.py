"""Spec-Bench's answer files, and those of other harnesses."""
