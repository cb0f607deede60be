"""A model by name: its files, its tokenizer, its decoder on a device."""
