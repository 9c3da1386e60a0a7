"""A server as a process, which is started on its cores, observed and ended."""

import os
import re
import select
import signal
import socket
import time
from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Failure(Exception):
    """A measurement that has failed. The reason is shown instead of a figure."""


class Server:
    """A server process, which ends with the `with` block at the latest."""

    def __init__(self, binary, cores, under=(), patience=10, environment=os.environ,
                 arguments=(), port=None):
        self.port = port or _free_port()
        command = [*map(str, under), str(binary), f"127.0.0.1:{self.port}", *arguments]
        null = [(os.POSIX_SPAWN_OPEN, n, "/dev/null", os.O_RDWR, 0) for n in range(3)]
        own = os.sched_getaffinity(0)
        # The child inherits this affinity, which saves the process of taskset.
        os.sched_setaffinity(0, cores)
        started = time.perf_counter()
        try:
            self.pid = os.posix_spawnp(
                command[0], command, environment, file_actions=null,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
        finally:
            os.sched_setaffinity(0, own)
        self.pidfd = os.pidfd_open(self.pid)
        # CPU time from its start to its end, in seconds; known when it has ended.
        self.spent = None
        try:
            self._first_answer(started + patience)
        except BaseException:
            self.end()
            raise
        # The time from exec to the first answer, in seconds.
        self.start_time = time.perf_counter() - started

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Ends the server, unless it has ended."""
        if self.pid is None:
            return
        if not self.has_ended():
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        usage = os.wait4(self.pid, 0)[2]
        self.spent = usage.ru_utime + usage.ru_stime
        os.close(self.pidfd)
        self.pid = None

    def terminate(self):
        """Sends TERM."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def has_ended(self, patience=0.0):
        """Returns True if the server ends within `patience` seconds."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(patience * 1000))

    def exit_code(self):
        """Waits for the end, and returns the exit code, which is negative for a signal."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def connect(self):
        """Opens a connection to the server."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def cpu(self):
        """Returns the CPU time of the living threads so far, in seconds, to the nanosecond."""
        return self.usage()[0]

    def peak(self):
        """Returns the most resident memory so far, in bytes (VmHWM)."""
        return self._kilobytes("status", "VmHWM") * 1024

    def private(self):
        """Returns the private memory of the process, in bytes."""
        return 1024 * sum(
            self._kilobytes("smaps_rollup", name) for name in ("Private_Clean", "Private_Dirty"))

    def tasks(self):
        """Returns the ids of the threads."""
        return [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]

    def descriptors(self):
        """Returns the number of open descriptors."""
        return descriptors(self.pid)

    def usage(self):
        """Returns three values of the living threads so far: the CPU time in seconds, and the
        numbers of voluntary and of involuntary waits for a core."""
        nanoseconds = waited = displaced = 0
        for task in self.tasks():
            of = Path(f"/proc/{self.pid}/task/{task}")
            nanoseconds += int((of / "schedstat").read_text().split()[0])
            status = (of / "status").read_text()
            waited += int(re.search(r"(?m)^voluntary_ctxt_switches:\s+(\d+)", status)[1])
            displaced += int(re.search(r"(?m)^nonvoluntary_ctxt_switches:\s+(\d+)", status)[1])
        return nanoseconds / 1e9, waited, displaced

    def _kilobytes(self, file, name):
        text = Path(f"/proc/{self.pid}/{file}").read_text()
        return int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1])

    def _first_answer(self, deadline):
        while True:
            if time.perf_counter() > deadline:
                raise Failure("no answer")
            if self.has_ended():
                raise Failure("ended at once")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=10) as client:
                    client.sendall(REQUEST)
                    if client.recv(4096):
                        return
            except OSError:
                continue


def descriptors(pid):
    """Returns the number of open descriptors of a process."""
    directory = f"/proc/{pid}/fd"
    # Since Linux 6.2, the size of the directory is this number, which takes only one call.
    return os.stat(directory).st_size or len(os.listdir(directory))


def by_request(before, after, requests):
    """Returns the CPU time and the context switches of a request, from two `Server.usage`."""
    return {of: (b - a) / requests
            for of, a, b in zip(("cpu", "waited", "displaced"), before, after)}


_next_port = 20000 + os.getpid() % 5000


def _free_port():
    """Returns a free port, below those that the kernel gives to clients."""
    global _next_port
    for _ in range(2000):
        _next_port = 20000 + (_next_port - 20000 + 1) % 10000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", _next_port))
                return _next_port
            except OSError:
                continue
    raise Failure("no free port")
