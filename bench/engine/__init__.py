"""What runs passes. Here are the limits that others need to know without torch."""

# Passes of up to this many positions share one mask buffer and the folded attention; a prefill is longer. No tree has
# more rows, its root included.
BLOCK = 128
MAX_DRAFTS = BLOCK - 1  # of a tree
