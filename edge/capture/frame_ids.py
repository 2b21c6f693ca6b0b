"""Frame numbers that cameras give: what is missing, what comes late, and how they wrap."""

from __future__ import annotations

_WRAP = 0xFFFF  # 16-bit ids run 1 ... 65535, 1 ...: 0 is reserved (GigE Vision 2.0, section 24.2)


class FrameIds:
    """Follows a camera's frame ids, of 16 bits (GigE Vision 1) or 64 (GigE Vision 2, GenTL)."""

    def __init__(self) -> None:
        self.last: int | None = None

    def step(self, frame_id: int) -> int:
        """How far the id is ahead of the newest one seen: 1 is the next frame, 1 + n that n are missing.

        0 or less: it was passed over already, as a frame that comes late. Such an id changes nothing here.
        """
        if self.last is None:
            self.last = frame_id
            return 1
        ahead = frame_id - self.last
        # Above 16 bits nothing wraps; and 65535 -> 65536 tells that the ids are longer.
        if max(frame_id, self.last) <= _WRAP:
            ahead %= _WRAP
            if ahead > _WRAP // 2:
                ahead -= _WRAP
        if ahead > 0:
            self.last = frame_id
        return ahead

    def after(self, count: int) -> int | None:
        """The id that comes `count` after the newest one."""
        if self.last is None:
            return None
        following = self.last + count
        return following - _WRAP if self.last <= _WRAP < following else following

    def skip(self) -> int | None:
        """The next frame was there, though its number was not received. Returns what it must have been."""
        self.last = self.after(1)
        return self.last
