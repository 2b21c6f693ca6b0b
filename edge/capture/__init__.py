"""Capture: one process per camera turns frames into slots of the ring and announces each part."""
