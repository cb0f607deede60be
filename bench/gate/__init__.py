"""The speed gate: base and new code side by side on one machine, until it is clear whether something got slower."""
