"""Several processes training as one: `torchrun --nproc-per-node N -m calibration.cli fit ...`.

One code path: a single process is a group of one, for which every operation does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from calibration.errors import FitError


@dataclass(frozen=True)
class Workers:
    """This process's place among those of a fit: `rank` of `count`. Rank 0 writes files and talks."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: str = "cpu") -> Workers:
        """Joins the group that `torchrun` announced in the environment; a group of one where it did not.

        Raises `FitError` where the announcement is incomplete or the others cannot be reached.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        if not dist.is_initialized():
            backend = "nccl" if device.startswith("cuda") else "gloo"
            try:
                dist.init_process_group(backend)
            except (ValueError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                raise FitError(f"cannot join the other processes ({reason}); start all of them by torchrun") from error
        return cls(dist.get_rank(), dist.get_world_size())

    @staticmethod
    def leave() -> None:
        """Leaves the group, if there is one."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: "cuda" becomes the card of its place on this machine."""
        if self.count == 1 or name != "cuda":
            return name
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
        if torch.cuda.is_available():
            torch.cuda.set_device(device)
        return device

    def share(self, total: int) -> range:
        """This process's part of `total` numbers: every `count`-th."""
        return range(self.rank, total, self.count)

    def wait(self) -> None:
        """Returns once all have come here."""
        if self.count > 1:
            dist.barrier()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each of `tensors`, float on one device, by its sum over the processes, in one exchange."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()
