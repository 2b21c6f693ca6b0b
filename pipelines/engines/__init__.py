"""Engines run a bundle: OpenVINO and torch behind one interface, each admitted by the parity gate."""
