"""The load that never sleeps (`peers/src/bin/spin`), and the measurements that use this load.

A send to a client that sleeps pays for waking that client. This load polls its connections without
a pause, so a server's CPU time is its own. The load connects before a measurement begins, and
leaves after the end. The kernel counts the system calls (`perf stat`), which does not slow the
server down.
"""

import json
import os
import select
import signal
import subprocess
import threading
from dataclasses import dataclass

from .servers import Failure, Server, by_request

# The limit in seconds for connecting, and for the time that a window takes beyond its length.
PATIENCE = 60


class Spin:
    """The load as a process, whose connections are open until the `with` block ends."""

    def __init__(self, binary, server, connections, path="/", length=4, **more):
        command = [binary, f"127.0.0.1:{server.port}", connections, path, length]
        command += [f"{name}={value}" for name, value in more.items() if value is not None]
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, bufsize=1)
        try:
            self._line(PATIENCE)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the load."""
        self.process.kill()
        self.process.communicate()

    def run(self, seconds):
        """Loads the server for this time, and returns the figures of the load."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return json.loads(self._line(seconds + PATIENCE))

    def _line(self, patience):
        """Returns the next line. The load writes each line at once, so a begun line is complete."""
        if not select.select([self.process.stdout], [], [], patience)[0]:
            raise Failure("the load says nothing")
        line = self.process.stdout.readline()
        if not line:
            raise Failure(self.process.stderr.read().strip() or "the load has ended")
        return line


@dataclass(frozen=True)
class SpinLoad:
    """Requests as fast as the server answers them, on a number of connections."""

    name: str
    connections: int
    fields: int = 2

    def measure(self, peer, binary, setting):
        with (Server(binary, setting.cores) as server,
              Spin(setting.spin, server, self.connections, fields=self.fields) as load):
            # The first run is not measured, because the server makes some things at first use.
            load.run(1)
            before = server.usage()
            told = load.run(setting.seconds)
            used = by_request(before, server.usage(), answered(told))
            peak = server.peak()
        return {
            **{f"{self.name}.{of}": value for of, value in used.items()},
            f"{self.name}.rate": told["requests"] / told["seconds"],
            f"{self.name}.p50": told["p50"],
            f"{self.name}.p99": told["p99"],
            f"{self.name}.peak": peak,
        }


class Newcomer:
    """The wait of a new client for its first response, beside 64 busy connections."""

    name = "newcomer"

    def measure(self, peer, binary, setting):
        with (Server(binary, setting.cores) as server,
              Spin(setting.spin, server, 64, newcomers=2000) as load):
            load.run(1)
            told = load.run(setting.seconds)
        if not told["newcomers"]:
            raise Failure("no newcomer was answered")
        return {"newcomer.p50": told["newcomer_p50"], "newcomer.p99": told["newcomer_p99"]}


class Calls:
    """System calls per request of 16 busy connections, and of 16 that pause after each response."""

    name = "calls"
    runs = 3

    def measure(self, peer, binary, setting):
        figures = {}
        for figure, pause in ("calls.busy-16", None), ("calls.pause-16", 500):
            for _ in range(self.runs):
                with (Server(binary, setting.cores) as server,
                      Spin(setting.spin, server, 16, pause=pause) as load):
                    load.run(1)
                    calls, told = count_calls(server, lambda: load.run(setting.seconds))
                figures.setdefault(figure, []).append(calls / answered(told))
        return figures


def answered(told):
    """Returns the number of answered requests, which is at least one."""
    if not told["requests"]:
        raise Failure("no request was answered")
    return told["requests"]


def count_calls(server, what):
    """Runs `what`. Returns the number of the server's system calls meanwhile, and the result."""
    control, control_end = os.pipe()
    ack, ack_end = os.pipe()
    command = ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", str(server.pid),
               "-D", "-1", "--control", f"fd:{control},{ack_end}"]
    perf = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, pass_fds=[control, ack_end])
    os.close(control)
    os.close(ack_end)

    def tell(order):
        try:
            os.write(control_end, order)
        except BrokenPipeError:
            return
        if not select.select([ack], [], [], PATIENCE)[0]:
            raise Failure("perf does not answer")
        os.read(ack, 64)

    # A thread reads perf's output. If perf cannot count, it exits, and its output says why.
    said = []
    reader = threading.Thread(target=lambda: said.append(perf.stderr.read()))
    reader.start()
    try:
        tell(b"enable\n")
        came = what()
        tell(b"disable\n")
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait()
        reader.join()
        os.close(control_end)
        os.close(ack)
    for line in said[0].splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[2].startswith("raw_syscalls") and fields[0].isdigit():
            return int(fields[0]), came
    raise Failure(f"perf: {' '.join(said[0].split()) or 'no figure'}")
