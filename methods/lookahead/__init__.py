"""Lookahead decoding: n-grams found by Jacobi iterations."""
