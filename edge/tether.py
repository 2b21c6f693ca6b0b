"""Runs a command that dies with whoever started it: `python -I -S tether.py PARENT_PID COMMAND…`.

The kernel is asked to send SIGKILL when the parent dies (prctl PR_SET_PDEATHSIG), which survives the exec that follows.
A small program between the two, and not a `preexec_fn`: running Python between fork and exec is unsafe in a process
whose libraries have started threads. Imports nothing of the project, so that it costs a few milliseconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Never returns: becomes the command, or exits 127 where it cannot be run."""
    parent, command = int(arguments[0]), arguments[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        print(f"error: prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(127)
    if os.getppid() != parent:
        sys.exit(0)  # the parent died before the kernel was told
    if "WATCHDOG_USEC" in os.environ:
        os.environ["WATCHDOG_PID"] = str(os.getpid())  # known only here; the exec keeps it
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell wanted
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
