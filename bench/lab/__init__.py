"""What the engine costs, and what a known acceptance would be worth there."""
