"""One broker for all processes of a test run: the one that controls them starts it when the first of them asks.

    controller: Lender()   thread: accept, start the broker (once), send its address ──┐
    worker:     borrow(lender.address) ◄───────────────── address, or what went wrong ─┘

The broker belongs to the controller: `close` stops it, and its watcher does where the controller is killed. A worker
that ends, or crashes and is replaced, does not matter to the others.
"""

import functools
import os
import pathlib
import tempfile
import threading
from multiprocessing.connection import Client, Listener

from tests.kafka_server import KafkaFailed, KafkaServer, KafkaToolMissing

HEAP = "512m"  # for the topics of several processes


class Lender:
    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tokenometer-lender-")  # nobody else may enter it
        self.address = str(pathlib.Path(self._folder.name) / "asked")
        self._listener = Listener(self.address, "AF_UNIX", backlog=os.cpu_count() or 1)
        self._server = KafkaServer(quick=True, heap=HEAP)
        self._closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            with self._listener.accept() as worker:
                if self._closing:
                    return
                try:
                    worker.send(self._answer)
                except OSError:
                    pass  # the worker has ended

    @functools.cached_property
    def _answer(self) -> str | Exception:
        try:
            self._server.start()
        except KafkaToolMissing as error:
            return error
        except Exception as error:  # whatever it is, no worker may wait for an answer that never comes
            return KafkaFailed(str(error))
        return self._server.bootstrap

    def close(self) -> None:
        """A broker that is just starting is waited for, so that none is left."""
        self._closing = True
        Client(self.address, "AF_UNIX").close()
        self._thread.join()
        self._listener.close()
        self._server.close()
        self._folder.cleanup()


def borrow(address: str) -> str:
    """The broker's address; raises what its start raised."""
    with Client(address, "AF_UNIX") as lender:
        answer = lender.recv()
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, str)
    return answer
