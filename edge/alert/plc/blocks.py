"""The two blocks as bytes, for protocols that carry registers or memory: the register map of docs/plc/README.md.

Everything is big-endian and word-aligned, so that the same table holds for Modbus registers and S7 data blocks. No
number is a float. `valid` comes last: a PLC that copies the block word by word in address order sees a new `valid`
only together with the part and result that belong to it.

    outputs, 8 words                          inputs, 7 words
    0    flags: bit 0 ready, 1 eject,         0    flags: bit 0 run
         2 lowest bit of valid (toggle)       1    ack
    1    heartbeat                            2    parts
    2    fault                                3-4  part (uint32, high word first)
    3    trigger                              5-6  encoder (int32, high word first)
    4-5  part (uint32, high word first)
    6    result
    7    valid
"""

from __future__ import annotations

import struct

from edge.alert.plc.adapter import Inputs, Outputs, Result

_OUTPUTS = struct.Struct(">HHHHIHH")
_INPUTS = struct.Struct(">HHHIi")
OUTPUT_BYTES = _OUTPUTS.size
INPUT_BYTES = _INPUTS.size
OUTPUT_WORDS = OUTPUT_BYTES // 2
INPUT_WORDS = INPUT_BYTES // 2

READY, EJECT, TOGGLE = 0x1, 0x2, 0x4  # bits of the outputs' flags
RUN = 0x1  # bit of the inputs' flags


def pack_outputs(outputs: Outputs) -> bytes:
    """The outputs as `OUTPUT_BYTES` bytes."""
    flags = READY * outputs.ready | EJECT * outputs.eject | TOGGLE * (outputs.valid & 1)
    return _OUTPUTS.pack(
        flags, outputs.heartbeat, outputs.fault, outputs.trigger, outputs.part, outputs.result, outputs.valid
    )


def unpack_outputs(data: bytes) -> Outputs:
    """The outputs in `OUTPUT_BYTES` bytes, as a PLC reads them. Raises `ValueError` for an unknown result."""
    flags, heartbeat, fault, trigger, part, result, valid = _OUTPUTS.unpack(data)
    return Outputs(
        ready=bool(flags & READY),
        heartbeat=heartbeat,
        fault=fault,
        part=part,
        result=Result(result),
        valid=valid,
        eject=bool(flags & EJECT),
        trigger=trigger,
    )


def pack_inputs(inputs: Inputs) -> bytes:
    """The inputs as `INPUT_BYTES` bytes, as a PLC writes them."""
    return _INPUTS.pack(RUN * inputs.run, inputs.ack, inputs.parts, inputs.part, inputs.encoder)


def unpack_inputs(data: bytes) -> Inputs:
    """The inputs in `INPUT_BYTES` bytes."""
    flags, ack, parts, part, encoder = _INPUTS.unpack(data)
    return Inputs(ack=ack, parts=parts, part=part, encoder=encoder, run=bool(flags & RUN))
