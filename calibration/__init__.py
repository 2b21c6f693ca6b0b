"""Offline work: fits heads, chooses limits, measures. Imports pipelines, never edge."""
