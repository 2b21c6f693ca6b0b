"""Which part a frame shows: triggers and frames paired by time and by count, see `alignment`."""
