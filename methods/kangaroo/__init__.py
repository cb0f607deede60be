"""Kangaroo: self-speculation with double early exit."""
