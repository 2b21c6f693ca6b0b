"""What TensorRT's side refuses, one JSON object on stdout. Run with the Python that builds engines; see the tests."""

import json
import sys
from typing import Any

import torch

from pipelines.engines import tensorrt_build
from pipelines.engines.tensorrt_graph import INPUT
from pipelines.engines.tensorrt_targets import Batch
from pipelines.engines.tensorrt_worker import load_library
from pipelines.errors import EngineError


class Spectrum(torch.nn.Module):
    """Has an operator that no TensorRT has."""

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.linalg.svdvals(frames.float().mean(3))
        return values[:, :1], values[:, None, None, :]


def words(call: Any, *arguments: Any) -> str:
    try:
        call(*arguments)
    except EngineError as error:
        return str(error)
    return "was not refused"


def main() -> None:
    load_library()
    import torch_tensorrt

    program = torch.export.export(Spectrum(), (torch.zeros(1, 8, 8, 1, dtype=torch.uint8),))
    assert INPUT in str(program.graph_signature)
    refused = {
        "operator": words(tensorrt_build.convert, program, Batch(1, 1), lambda what, done: None, (8, 8, 1)),
        "option": words(tensorrt_build.checked, torch_tensorrt.dynamo.compile, {"enabled_precisions": {torch.half}}),
        "known": words(tensorrt_build.checked, torch_tensorrt.dynamo.compile, {"dryrun": True}),
    }
    json.dump(refused, sys.stdout)


if __name__ == "__main__":
    main()
