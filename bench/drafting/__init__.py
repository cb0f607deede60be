"""Drafts: trees, verification, sampling, when to stop, what passes cost."""
