"""A run: who takes part, what is asked, what is kept."""
