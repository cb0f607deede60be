"""Models: from a name to files, a tokenizer, and a decoder on a device."""
