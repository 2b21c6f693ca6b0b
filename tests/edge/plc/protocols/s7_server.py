"""An S7 server for the tests: the C library Snap7 by python-snap7 2.1.0, run by the Python of .peers/venv.

Arguments: port. A line on stdin is a command: "get", answered by DB1's first 16 bytes in hex, or "set HEX", which
writes the start of DB2. Snap7 has its own threads: this program only looks at the memory that they serve.
"""

import ctypes
import sys

import snap7.server
from snap7.type import SrvArea

outputs = (ctypes.c_uint8 * 64)()
inputs = (ctypes.c_uint8 * 64)()
server = snap7.server.Server(log=False)
server.register_area(SrvArea.DB, 1, outputs)
server.register_area(SrvArea.DB, 2, inputs)
server.start(tcp_port=int(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:
    command, _, data = line.strip().partition(" ")
    if command == "set":
        inputs[: len(data) // 2] = bytes.fromhex(data)
    print(bytes(outputs[:16]).hex(), flush=True)
