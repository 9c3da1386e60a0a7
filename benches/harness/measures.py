"""The measurements. Each function takes a binary and returns its figures, by name.

A figure that this server does not have is None (`—` in the table).
"""

import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import clients
from .clients import MIB, InFlight, KeepAlive, close_as_closed
from .servers import REQUEST, Failure, Server, by_request
from .spin import Calls, Newcomer, SpinLoad

IDLE = 10_000


@dataclass(frozen=True)
class Setting:
    """The duration and the cores of a run."""

    cores: set
    seconds: int = 3
    starts: int = 4  # in each round
    spin: Path = None  # the load that never sleeps


@dataclass(frozen=True)
class Load:
    """A load by wrk."""

    name: str
    how: str
    connections: int
    path: str = "/"

    def measure(self, peer, binary, setting):
        with Server(binary, setting.cores) as server:
            if self.how == "pipeline" and not clients.answers_pipelined(server):
                return {f"{self.name}.{of}": None
                        for of in ("cpu", "waited", "displaced", "rate", "p50", "p99", "peak")}
            # The first run is not measured, because the server makes some things at their first
            # use.
            clients.wrk(server, self.how, self.path, self.connections, 1)
            before = server.usage()
            told = clients.wrk(server, self.how, self.path, self.connections, setting.seconds)
            after, peak = server.usage(), server.peak()
        answered = self.answered(told)
        return {
            **{f"{self.name}.{of}": value
               for of, value in by_request(before, after, answered).items()},
            f"{self.name}.rate": answered / told["seconds"],
            f"{self.name}.p50": told["p50"],
            f"{self.name}.p99": told["p99"],
            f"{self.name}.peak": peak,
        }

    def answered(self, told):
        """Returns the number of answers in wrk's report. Fails if too many requests had none."""
        answered, failed = told["requests"], told["failed"]
        # If a server closes although its response has not said so, wrk counts a broken connection.
        failed += told["broken"] if self.how != "close" else 0
        if answered == 0 or failed > answered / 1000:
            raise Failure(f"{answered} requests, {failed} failed")
        return answered


@dataclass(frozen=True)
class Transfer:
    """A load with bodies of 16 MiB, as uploads or as echoes."""

    name: str
    size: int = 16 * MIB

    def measure(self, peer, binary, setting):
        send = {"upload": clients.upload, "echo": clients.echo}[self.name]
        with Server(binary, setting.cores) as server:
            send(server, 0, self.size)
            before = server.cpu()
            count, took = send(server, setting.seconds, self.size)
            cpu, peak = server.cpu() - before, server.peak()
        mebibytes = count * self.size / MIB
        return {
            f"{self.name}.cpu": cpu / mebibytes,
            f"{self.name}.rate": mebibytes / took,
            f"{self.name}.peak": peak,
        }


class Start:
    """The time from exec to the first answer, and the memory by then."""

    name = "start"

    def measure(self, peer, binary, setting):
        figures = {"start.time": [], "start.peak": []}
        for _ in range(setting.starts):
            with Server(binary, setting.cores) as server:
                figures["start.time"].append(server.start_time)
                figures["start.peak"].append(server.peak())
        return figures


class Idle:
    """Idle keep-alive connections, each of which was used once, and TERM with all of them open."""

    name = "idle"

    def measure(self, peer, binary, setting):
        with Server(binary, setting.cores) as server:
            before = private_once_used(server)
            with KeepAlive(server, IDLE) as held:
                time.sleep(1)
                figures = {"idle.memory": (server.private() - before) / IDLE, "idle.drain": None}
                if peer.stops:
                    started = time.perf_counter()
                    server.terminate()
                    ended = close_as_closed(server, held.clients, 40)
                    took = time.perf_counter() - started
                    figures["idle.drain"] = took if ended else float("inf")
        return figures


class LastResponse:
    """The time from the last response to the exit, with one request in flight at TERM."""

    name = "last"

    def measure(self, peer, binary, setting):
        if not peer.stops:
            return {"last.drain": None}
        with Server(binary, setting.cores) as server, InFlight(server) as request:
            time.sleep(0.1)
            server.terminate()
            # This is longer than any linger.
            time.sleep(0.4)
            request.finish()
            started = time.perf_counter()
            ended = close_as_closed(server, [request.client], 40)
            took = time.perf_counter() - started
        return {"last.drain": took if ended else float("inf")}


class Syscalls:
    """System calls per keep-alive request, on one connection and on 16 that send at the same time.

    The clients pause before each request, because strace slows the server down so much that every
    request would be there already, and the server would never wait. After a longer pause, smol's
    own thread takes the reactor from the worker, and the count varies.
    """

    name = "syscalls"

    def measure(self, peer, binary, setting):
        figures = {}
        for connections in (1, 16):
            with Server(binary, setting.cores) as server:
                calls = system_calls([server], connections)
            figures[f"syscalls.{connections}"] = sum(calls.values())
            often = sorted(calls.items(), key=lambda call: -call[1])
            names = [f"{name} {count:.1f}" for name, count in often if count >= 0.05]
            figures[f"syscalls.{connections}.names"] = ", ".join(names)
        return figures


class Instructions:
    """The instructions per keep-alive request, in user space: callgrind's count after 5,000
    requests less its count after 1,000."""

    name = "instructions"

    def measure(self, peer, binary, setting):
        return {"instructions": instructions(binary, setting.cores)}


class Size:
    """The size of the stripped binary."""

    name = "size"

    def measure(self, peer, binary, setting):
        return {"size": binary.stat().st_size}


# These are measured in each round, one after the other, for all servers in turn.
CONNECTIONS = (1, 16, 64, 512, 4096)
ROUNDS = [
    *(Load(f"keep-{count}", "keep", count) for count in CONNECTIONS),
    *(SpinLoad(f"spin-{count}", count) for count in CONNECTIONS),
    Newcomer(),
    Load("close", "close", 64),
    Load("pipeline", "pipeline", 64),
    Load("browser", "browser", 64),
    SpinLoad("spin-browser", 64, fields=12),
    Load("download", "keep", 16, "/download"),
    Transfer("upload"),
    Transfer("echo"),
    Start(),
    Idle(),
    LastResponse(),
]

# These are counts, which do not depend on other work of the machine.
ONCE = [Size(), Calls(), Syscalls(), Instructions()]


def private_once_used(server):
    """Returns the private memory after the first connections, which have one-time costs."""
    with KeepAlive(server, 16):
        pass
    time.sleep(0.2)
    return server.private()


def system_calls(servers, connections, requests=1600, patience=20):
    """Returns the system calls per keep-alive request by name, of processes that share a port."""
    with (tempfile.NamedTemporaryFile("r") as table,
          KeepAlive(servers[0], connections) as client):
        command = ["strace", "-f", "-c", "-o", table.name]
        command += [argument for server in servers for argument in ("-p", str(server.pid))]
        strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait_until(lambda: all(_is_traced(server, task)
                                    for server in servers for task in server.tasks()))
            deadline = time.monotonic() + patience
            for number in range(requests // connections):
                if time.monotonic() > deadline:
                    raise Failure(f"{number * connections} requests in {patience} s under strace")
                time.sleep(0.0005)
                client.run(connections)
        finally:
            strace.send_signal(2)
            strace.wait()
        calls = {}
        for line in table.read().splitlines():
            fields = line.split()
            if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
                calls[fields[-1]] = int(fields[3]) / requests
    if not calls:
        raise Failure("strace has seen nothing")
    return calls


def instructions(binary, cores, few=1000, many=5000, deep=1, request=REQUEST):
    """Returns the instructions per request, with `deep` requests at a time. If that is more than
    one, `request` is sent."""
    # valgrind cannot run Go with preemption by signals.
    calm = dict(os.environ, GODEBUG="asyncpreemptoff=1")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        under = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        with (Server(binary, cores, under, patience=30, environment=calm) as server,
              KeepAlive(server, 1) as client):
            for requests in (few, many - few):
                client.run(requests) if deep == 1 else client.pipeline(requests, deep, request)
                command = ["vgdb", "--wait=5", f"--pid={server.pid}", "dump"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=30)
                if done.returncode != 0:
                    raise Failure(f"vgdb: {done.stderr.strip()}")
        # A dump counts from the end of the dump before.
        dump = Path(f"{out}.2").read_text()
    return int(re.search(r"(?m)^totals: (\d+)", dump)[1]) / (many - few)


def _is_traced(server, task):
    status = Path(f"/proc/{server.pid}/task/{task}/status").read_text()
    return "TracerPid:\t0\n" not in status


def _wait_until(condition, patience=10):
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise Failure("waited for nothing")
        time.sleep(0.01)
