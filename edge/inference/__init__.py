"""Inference: one process per GPU turns announced frames into raw scores."""
