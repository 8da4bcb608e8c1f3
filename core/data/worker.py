"""A process that tokenises: `python -m luthier.core.data.worker FD`, started by workers.py, which it talks to over FD.

gets   sys.path; then a callable, then batches, then perhaps another callable and its batches, ...
gives  for each batch what the callable makes of it, or the Failure
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from luthier.core.data.workers import Failure


def main(descriptor: int) -> None:
    """Answer until the other side closes."""
    # Ctrl-C reaches every process of the terminal; the one that reads the rows ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    sys.path[:] = connection.recv()
    # Taken out of the socket at once: with both sides writing into a full one, neither would read.
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    answer: Any = None
    while True:
        try:
            message = ForkingPickler.loads(inbox.get())
            if callable(message):
                answer = message
                continue
            result = answer(message)
        except Exception as error:
            result = Failure.of(error, traceback.format_exc())
        try:
            connection.send_bytes(ForkingPickler.dumps(result))
        except (BrokenPipeError, ConnectionResetError):
            return


def _receive(connection: Connection, inbox: queue.SimpleQueue[bytes]) -> None:
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        # Nobody is left to take a result. In the middle of one there is no other way out, and nothing to put away.
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
