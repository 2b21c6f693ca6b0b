"""Anomaly heads: each turns encoder tokens into raw patch scores."""
