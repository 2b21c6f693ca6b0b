"""Alert: one process per line gives every announced part its verdict before the deadline."""
