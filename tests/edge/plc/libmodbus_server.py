"""A Modbus TCP server of its own: libmodbus (C) by ctypes, and behind its registers the PLC program of
docs/plc/edge_inspect.st. A process without any of the project's code.

    libmodbus_server.py --port N --program FILE --log FILE [--scan-ms S] [--invent] [NAME=VALUE of the program's inputs]

It says "listening" on standard output. Lines on standard input: `seen` (a part comes to the camera), `end` (write the
report and exit). The log has one JSON line per change, with the server's own CLOCK_MONOTONIC:
    {"t": ns, "register": r, "value": v}, {"t": ns, "coil": c, "value": v},
    {"t": ns, "part": n, "rejected": true}, and last {"report": {...}}
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import socket
import sys
import time
from pathlib import Path

from structured_text import FunctionBlock

OUTPUTS, INPUTS, COILS = 8, 100, 16
MAX_ADU = 260


class Mapping(ctypes.Structure):
    """modbus_mapping_t of modbus.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("nb_bits", "start_bits", "nb_input_bits", "start_input_bits")),
        *((name, ctypes.c_int) for name in ("nb_input_registers", "start_input_registers")),
        *((name, ctypes.c_int) for name in ("nb_registers", "start_registers")),
        ("tab_bits", ctypes.POINTER(ctypes.c_uint8)),
        ("tab_input_bits", ctypes.POINTER(ctypes.c_uint8)),
        ("tab_input_registers", ctypes.POINTER(ctypes.c_uint16)),
        ("tab_registers", ctypes.POINTER(ctypes.c_uint16)),
    ]


def library() -> ctypes.CDLL:
    lib = ctypes.CDLL("libmodbus.so.5", use_errno=True)
    lib.modbus_new_tcp.restype = ctypes.c_void_p
    lib.modbus_new_tcp.argtypes = [ctypes.c_char_p, ctypes.c_int]
    lib.modbus_mapping_new.restype = ctypes.POINTER(Mapping)
    lib.modbus_set_socket.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.modbus_receive.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.modbus_reply.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(Mapping)]
    return lib


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.lib = library()
        self.context = self.lib.modbus_new_tcp(b"127.0.0.1", options.port)
        self.map = self.lib.modbus_mapping_new(COILS, 0, INPUTS + 16, INPUTS + 16).contents
        self.scan_ns = round(options.scan_ms * 1e6)
        inputs = dict(pair.split("=") for pair in options.inputs)
        self.program = FunctionBlock(options.program, **{name: int(value) for name, value in inputs.items()})
        self.invent = options.invent
        self.log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.listener = socket.create_server(("127.0.0.1", options.port), reuse_port=False)
        self.clients: list[socket.socket] = []
        self.before = ([0] * OUTPUTS, [0] * COILS)
        self.seen = 0  # parts that have come to the camera, and are not scanned yet
        self.requests = 0

    def say(self, **event: object) -> None:
        os.write(self.log, json.dumps(event).encode() + b"\n")

    def run(self) -> None:
        print("listening", flush=True)
        due = time.monotonic_ns() + self.scan_ns
        query = ctypes.create_string_buffer(MAX_ADU)
        while True:
            wait = max(0, due - time.monotonic_ns()) / 1e9
            for ready in select.select([self.listener, sys.stdin, *self.clients], [], [], wait)[0]:
                if ready is self.listener:
                    self.clients.append(self.listener.accept()[0])
                elif ready is sys.stdin:
                    word = os.read(0, 4096).decode()
                    self.seen += word.count("seen")
                    if "end" in word or not word:
                        return self.report()
                else:
                    self.serve(ready, query)
            if time.monotonic_ns() >= due:
                self.scan()
                due = max(due + self.scan_ns, time.monotonic_ns())

    def serve(self, client: socket.socket, query: ctypes.Array[ctypes.c_char]) -> None:
        self.lib.modbus_set_socket(self.context, client.fileno())
        length = self.lib.modbus_receive(self.context, query)
        if length > 0:
            self.requests += 1
            now = time.monotonic_ns()
            self.lib.modbus_reply(self.context, query, length, ctypes.byref(self.map))
            self.notice(now)
        elif length < 0:
            client.close()
            self.clients.remove(client)

    def notice(self, now: int) -> None:
        registers, coils = self.map.tab_registers[:OUTPUTS], self.map.tab_bits[:COILS]
        for name, before, after in (("register", self.before[0], registers), ("coil", self.before[1], coils)):
            for number, (old, new) in enumerate(zip(before, after, strict=True)):
                if old != new:
                    self.say(t=now, value=new, **{name: number})
        self.before = (registers, coils)

    def scan(self) -> None:
        """One cycle of the PLC: the blocks in, the program, the blocks out."""
        now = time.monotonic_ns()
        block = self.map.tab_registers[:OUTPUTS]
        plc = self.program
        inputs = {
            "NowMs": now // 1_000_000,
            "Belt": now // 1_000_000 & 0x7FFF_FFFF,
            "Ready": block[0] & 1,
            "EjectBit": block[0] >> 1 & 1,
            "Heartbeat": block[1],
            "Fault": block[2],
            "PartOf": block[4] << 16 | block[5],
            "Result": block[6],
            "Valid": block[7],
        }
        if self.invent and block[7] != plc.Valid and block[6] and plc.Beats >= 3:
            plc.Part = inputs["PartOf"] - 1
            self.seen = 1
        edges = [True, False] * self.seen or [False]
        self.seen = 0
        for edge in edges:
            first, count, rejected = int(plc.First), int(plc.Count), int(plc.Rejected)
            numbers = list(plc.Number)
            plc.scan(AtCamera=edge, **inputs)
            gone = (int(plc.First) - first) % 64
            if gone > 1 and int(plc.Rejected) - rejected not in (0, gone):
                raise SystemExit("several parts decided differently in one scan: the test is too fast for its cycle")
            for place in range(gone if count or gone else 0):
                self.say(t=now, part=int(numbers[(first + place) % 64]), rejected=int(plc.Rejected) > rejected)
        answer = [
            1,
            int(plc.Ack),
            int(plc.Parts),
            int(plc.Part) >> 16,
            int(plc.Part) & 0xFFFF,
            inputs["Belt"] >> 16 & 0xFFFF,
            inputs["Belt"] & 0xFFFF,
        ]
        for number, value in enumerate(answer):
            self.map.tab_registers[INPUTS + number] = self.map.tab_input_registers[INPUTS + number] = value

    def report(self) -> None:
        plc = self.program
        names = ("Passed", "Rejected", "NoResult", "Ignored", "Ack", "Parts", "Overflow")
        self.say(report={name: int(getattr(plc, name)) for name in names} | {"requests": self.requests})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--program", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--scan-ms", type=float, default=5.0)
    parser.add_argument("--invent", action="store_true", help="take a part as seen when its result comes")
    parser.add_argument("inputs", nargs="*")
    Server(parser.parse_args()).run()
