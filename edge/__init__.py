"""The running line: capture, inference and alert processes, and the tools around them."""
