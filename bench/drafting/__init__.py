"""Drafting and verification: trees, acceptance, sampling, when to stop, forward-pass costs."""
