"""`calibrate distill`: makes a small encoder that learns from a larger one."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from calibration.progress import Reporter

INTERRUPTED = 130
"""Exit code of a program ended by Ctrl-C, as shells have it."""


class Arithmetic(str, Enum):
    """Arithmetic of training."""

    FP32 = "fp32"
    BF16 = "bf16"


class Pick(str, Enum):
    """Which weights are written."""

    PROBE = "probe"
    R2 = "r2"
    LAST = "last"


class OptimizerName(str, Enum):
    """Optimisers."""

    MUON = "muon"
    ADAMW = "adamw"


def distill(
    teacher: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Weights of one of our encoders (DINOv2, DINOv3 ...), or a CNN for OpenVINO."
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Option(metavar="DIR", help="Folder of unlabelled images, searched at any depth. May be repeated."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE.safetensors", help="The encoder to write; card and log go beside it.")
    ],
    init: Annotated[
        str | None, typer.Option(metavar="compact|FILE", help="Encoder to go on from. [random weights]")
    ] = None,
    tap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Teacher's depth to learn: a block's number, or a CNN's interior output. May be repeated. "
            "[middle and last block; last residual sums of strides 8, 16, 32]",
        ),
    ] = None,
    tap_weight: Annotated[
        list[float] | None, typer.Option(help="Weight of each depth in the loss, in their order. [1 each]")
    ] = None,
    block: Annotated[
        list[int] | None, typer.Option(min=1, help="Student block that predicts each depth, in their order.")
    ] = None,
    probe: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Picks the checkpoint: a labelled set, or good images (defects are pasted). May be repeated.",
        ),
    ] = None,
    pick: Annotated[
        Pick, typer.Option(help="Which weights are written: of the best probe, of the best held-out R2, or the last.")
    ] = Pick.PROBE,
    probe_size: Annotated[int, typer.Option(help="Input of the probe [px].")] = 320,
    probe_block: Annotated[int | None, typer.Option(min=1, help="Student block of the probe. [last but one]")] = None,
    probe_every: Annotated[int, typer.Option(min=1, help="Steps from probe to probe.")] = 250,
    held_out: Annotated[int, typer.Option(min=0, help="Images kept from training to measure R2 on.")] = 64,
    size: Annotated[
        list[int] | None, typer.Option(help="Side of crops [px], multiples of 32. May be repeated. [160 to 448]")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=100_000_000, help="Training steps.")] = 20_000,
    hours: Annotated[float | None, typer.Option(min=0.001, help="Ends after so long; not repeatable then.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=65536, help="Crops per step, of all processes together.")] = 16,
    optimizer: Annotated[
        OptimizerName, typer.Option(help="Of the encoder's matrices; everything else learns by AdamW.")
    ] = OptimizerName.MUON,
    rate: Annotated[float, typer.Option(min=1e-7, max=1.0, help="Highest learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(min=0, help="Steps until the rate is at its highest.")] = 100,
    weight_decay: Annotated[float, typer.Option(min=0.0, max=1.0, help="Decay of the encoder's matrices.")] = 0.02,
    ema: Annotated[
        float, typer.Option(help="Decay of the moving average of the weights, which is what is written.")
    ] = 0.999,
    cosine: Annotated[float, typer.Option(min=0.0, help="Weight of 1 - cosine beside smooth L1.")] = 1.0,
    relation: Annotated[float, typer.Option(min=0.0, help="Weight of the relational loss.")] = 0.0,
    augment: Annotated[float, typer.Option(min=0.0, max=2.0, help="Strength of colour, blur and noise.")] = 1.0,
    same_view: Annotated[
        bool,
        typer.Option("--same-view/--plain-view", help="Whether the teacher sees the altered view, or the plain one."),
    ] = True,
    width: Annotated[int, typer.Option(min=12, max=2048, help="Without --init: channels of a token.")] = 192,
    depth: Annotated[int, typer.Option(min=1, max=48, help="Without --init: blocks.")] = 12,
    heads: Annotated[int, typer.Option(min=1, max=64, help="Without --init: attention heads.")] = 3,
    patch: Annotated[int, typer.Option(help="Without --init: side of a patch, 8, 16 or 32 px.")] = 16,
    precision: Annotated[Arithmetic, typer.Option(help="Arithmetic of training.")] = Arithmetic.FP32,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; cuda under torchrun: one card each.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all cores otherwise.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of every random choice.")] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leaves out images that cannot be used, and names them.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Goes on after an interruption.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Shows errors only.")] = False,
) -> None:
    """Makes a small encoder that learns the dense features of a larger network from unlabelled images.

    Ctrl-C saves; the same command with --resume goes on.
    """
    from calibration.distill.run import distill as run
    from calibration.distill.settings import SIZES, DistillSettings
    from calibration.workers import Workers

    settings = DistillSettings(
        teacher=teacher,
        images=tuple(images),
        out=out,
        init=init,
        taps=tuple(tap or ()),
        tap_weights=tuple(tap_weight or ()),
        blocks=tuple(block or ()),
        probes=tuple(probe or ()),
        pick=pick.value,
        probe_size=probe_size,
        probe_block=probe_block,
        probe_every=probe_every,
        held_out=held_out,
        sizes=tuple(size or SIZES),
        steps=steps,
        hours=hours,
        batch=batch,
        optimizer=optimizer.value,
        rate=rate,
        warmup=warmup,
        weight_decay=weight_decay,
        ema=ema,
        cosine=cosine,
        relation=relation,
        augment=augment,
        same_view=same_view,
        width=width,
        depth=depth,
        heads=heads,
        patch=patch,
        precision=precision.value,
        device=device,
        threads=threads,
        seed=seed,
        skip_bad=skip_bad,
        resume=resume,
    )
    quiet = quiet or os.environ.get("RANK", "0") != "0"  # of several processes under torchrun
    console = Console()
    try:
        with Reporter(console, quiet) as reporter:
            made = run(settings, reporter, reporter.say)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; the same command with --resume goes on from the last checkpoint")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        Workers.leave()
    if not quiet:
        chosen = made.card["chosen"]
        console.print(
            f"{made.out}: step {chosen['step']} of {made.card['steps']}, {made.card['crops']} crops", highlight=False
        )
        console.print(f"card {settings.card}, log {settings.log}", highlight=False)
    if not made.finished:
        Console(stderr=True).print("stopped and saved; the same command with --resume goes on from here")
        raise typer.Exit(INTERRUPTED)
