"""Records and what is computed from them; no torch."""
