"""Runs over the product of knobs or trainings."""
