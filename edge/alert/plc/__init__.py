"""The line's side of a PLC: one adapter per protocol, one handshake over all of them. See docs/plc/README.md."""
