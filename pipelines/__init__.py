"""Pixels to score: encoders, heads, scoring, bundles and engines. Imports neither edge nor calibration."""
