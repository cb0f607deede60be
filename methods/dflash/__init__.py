"""DFlash: a block of drafts in one pass."""
