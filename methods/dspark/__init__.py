"""DSpark: DFlash with two more heads."""
