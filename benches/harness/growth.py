"""Measures how the cost of smol-graceful grows. Each case measures one size, and returns its
figures.

The server has its own cores, and the load has the others. `plots` says which figures should grow in
proportion, and which should not grow.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from .budgets import LINGER
from .clients import MIB, KeepAlive, close_as_closed
from .measures import instructions, private_once_used
from .servers import Failure, Server, by_request, descriptors
from .spin import Spin, answered

KIB = 1 << 10
GIB = 1 << 30
MOST_IDLE = 16_000


@dataclass(frozen=True)
class Setting:
    """The binaries, the cores of the server, and the duration of a load."""

    server: Path
    spin: Path
    keeper: tuple
    cores: set
    seconds: int


class Idle:
    """Idle connections that were used once each: their memory, the sweep, and a TERM."""

    name = "idle"
    sizes = (1000, 4000, MOST_IDLE)
    repeats = True

    def measure(self, size, setting):
        with Server(setting.server, setting.cores) as server:
            before = private_once_used(server)
            with KeepAlive(server, size) as held:
                time.sleep(1)
                memory = (server.private() - before) / size
                began, spent = time.perf_counter(), server.cpu()
                # The sweep runs once a second.
                time.sleep(2 * setting.seconds)
                sweep = (server.cpu() - spent) / (time.perf_counter() - began)
                spent, started = server.cpu(), time.perf_counter()
                server.terminate()
                if not close_as_closed(server, held.clients, 40):
                    raise Failure("it has not ended 40 s after TERM")
                drain = time.perf_counter() - started
        return {"idle.memory": memory, "idle.sweep": sweep, "idle.drain": drain - LINGER,
                "idle.drain.cpu": server.spent - spent}


class HandOver:
    """The idle connections that go to the successor in a second, at a restart by a keeper."""

    name = "handover"
    sizes = Idle.sizes
    repeats = True
    patience = 30

    def measure(self, size, setting):
        with (Server(setting.server, setting.cores, under=setting.keeper) as keeper,
              KeepAlive(keeper, size) as held):
            time.sleep(0.5)
            predecessor = children(keeper.pid)[0]
            signal.pidfd_send_signal(keeper.pidfd, signal.SIGUSR2)
            rate = self._rate(predecessor, size)
            held.run(size)
            keeper.terminate()
            if not keeper.has_ended(self.patience):
                raise Failure("the keeper has not ended after TERM")
        return {"handover.rate": rate}

    def _rate(self, predecessor, size):
        """Returns how many connections leave the predecessor in a second."""
        open_before = descriptors(predecessor)
        deadline = time.perf_counter() + self.patience
        first = None
        while True:
            now = time.perf_counter()
            if now > deadline:
                raise Failure("the connections have not all been handed over")
            try:
                left = descriptors(predecessor)
            except FileNotFoundError:
                left = 0
            gone = open_before - left
            # The successor, which has been forked here, and the listener change the number by a
            # few.
            if first is None and gone > size // 20:
                first = (now, gone)
            if gone >= size - size // 20:
                if first is None or first[0] == now:
                    raise Failure("they were all gone at the first look")
                return (gone - first[1]) / (now - first[0])


def children(pid):
    """Returns the child processes of a process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry))
    if not found:
        raise Failure("the keeper has no child")
    return found


class Connections:
    """Small requests as fast as the server answers them, on busy connections."""

    name = "connections"
    sizes = (1, 16, 64, 512, 4096)
    repeats = True

    def measure(self, size, setting):
        used, _, _ = loaded(setting, size)
        return {"connections.cpu": used["cpu"],
                "connections.switches": used["waited"] + used["displaced"]}


class Heads:
    """CPU time of a request by the fields of its head, on 64 connections."""

    name = "heads"
    sizes = (2, 12, 60)
    repeats = True

    def measure(self, size, setting):
        used, _, _ = loaded(setting, 64, fields=size)
        return {"heads.cpu": used["cpu"]}


class HeadInstructions:
    """Instructions of a request by the fields of its head, 4 requests at a time."""

    name = "instructions"
    sizes = Heads.sizes
    repeats = False

    def measure(self, size, setting):
        return {"heads.instructions": instructions(
            setting.server, setting.cores, deep=4, request=head(size))}


class Bodies:
    """CPU time of a body by its length, up and down, on 4 connections, and the peak memory."""

    name = "bodies"
    sizes = (KIB, MIB, GIB)
    repeats = True

    def measure(self, size, setting):
        figures = {}
        for way, options in (
            ("up", {"path": "/upload", "length": len(str(size)), "upload": size}),
            ("down", {"path": f"/bytes/{size}", "length": size}),
        ):
            # A load may be too short for one of the longest bodies, so the bytes are counted.
            used, told, peak = loaded(setting, 4, by_bytes=True, **options)
            figures[f"bodies.{way}"] = used["cpu"] * size
            figures[f"bodies.{way}.peak"] = peak
        return figures


CASES = [Idle(), HandOver(), Connections(), Heads(), HeadInstructions(), Bodies()]


def loaded(setting, connections, by_bytes=False, **options):
    """Returns the usage of a request or byte, the figures of the load, and the peak memory."""
    with (Server(setting.server, setting.cores) as server,
          Spin(setting.spin, server, connections, **options) as load):
        load.run(1)
        before = server.usage()
        told = load.run(setting.seconds)
        after = server.usage()
        count = told["bytes"] if by_bytes else answered(told)
        if not count:
            raise Failure("no byte has gone through")
        return by_request(before, after, count), told, server.peak()


def head(fields):
    """Returns a request whose head has this number of fields."""
    names = [f"X-Field-{number}: a value of some thirty letters" for number in range(1, fields)]
    return "\r\n".join(["GET / HTTP/1.1", "Host: localhost", *names, "", ""]).encode()
