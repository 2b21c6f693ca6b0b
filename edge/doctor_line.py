"""What a line's own settings need of this computer: room, bundles, files, and engines that are built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge.doctor import Finding, Host, fault, ok, warning

if TYPE_CHECKING:
    from edge.settings import Settings


def needs(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """What `edge config check` warns of."""
    if settings is None:
        return
    from edge.cli_config import warnings

    found = list(warnings(settings))
    for text in found:
        what, _, advice = text.partition("; ")
        yield fault("line", what, advice or "make it, or correct the settings")
    if not found:
        yield ok("line", f"{settings.line.name}: every file it names is there, and shared memory is enough")


def bundles(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Is every bundle whole, and is an engine built for it, so that the line starts at once?"""
    if settings is None:
        return
    from pipelines.bundle import Bundle
    from pipelines.engines import cache
    from pipelines.errors import BundleError

    for path in dict.fromkeys(settings.bundle(camera) for camera in settings.cameras):
        if not path.is_dir():
            continue  # `needs` says so
        try:
            bundle = Bundle.open(path)
        except BundleError as error:
            what, _, advice = str(error).rpartition("; ")
            yield fault("bundle", what or advice, advice if what else "copy the bundle again from its source")
            continue
        first = settings.inference.engines[0]
        built = any(list(root.glob(f"{first}-*/{cache.KEY}")) for root in cache.roots(bundle))
        if first in ("openvino", "tensorrt", "torch_cuda") and not built:
            fix = f"`edge bundle build {path} --engine {first}`"
            yield warning("bundle", f"{path}: engine {first} is not built yet; the first start builds it", fix)
        else:
            yield ok("bundle", f"{path}: whole, id {bundle.id[:12]}")


CHECKS = (needs, bundles)
