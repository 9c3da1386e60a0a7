"""The load: wrk, and clients in Python for the cases that wrk does not have."""

import json
import re
import select
import socket
import subprocess
import threading
import time
from pathlib import Path

from .servers import REQUEST, Failure

SCRIPT = Path(__file__).with_name("load.lua")
MIB = 1 << 20


def wrk(server, how, path, connections, seconds):
    """Runs wrk, and returns the values that `load.lua` prints."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s"]
    command += ["-s", str(SCRIPT), f"http://127.0.0.1:{server.port}{path}", "--", how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise Failure(f"wrk: {done.stderr.strip() or 'no figures'}")
    return json.loads(lines[-1])


def answers_pipelined(server, count=16):
    """Returns True if all of several requests in one packet are answered."""
    with server.connect() as client:
        client.settimeout(1)
        client.sendall(REQUEST * count)
        answers = b""
        try:
            while answers.count(b"HTTP/1.1 200") < count:
                piece = client.recv(65536)
                if not piece:
                    return False
                answers += piece
        except OSError:
            return False
        return True


class KeepAlive:
    """Connections that were used once each, and then send one request after the other."""

    def __init__(self, server, count):
        self.clients = []
        try:
            for _ in range(count):
                self.clients.append(server.connect())
                _ask(self.clients[-1])
        except OSError as error:
            self.close()
            raise Failure(f"connection {len(self.clients)}: {error}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the connections."""
        for client in self.clients:
            client.close()

    def pipeline(self, requests, deep, request=REQUEST):
        """Sends this number of requests on the first connection, `deep` at a time."""
        client = self.clients[0]
        for _ in range(requests // deep):
            client.sendall(request * deep)
            answers = b""
            while answers.count(b"\r\n\r\nokay") < deep:
                piece = client.recv(65536)
                if not piece:
                    raise Failure("the connection was closed")
                answers += piece

    def run(self, requests):
        """Sends this number of requests, each on a connection without an open request."""
        if len(self.clients) == 1:
            for _ in range(requests):
                _ask(self.clients[0])
            return
        poll = select.poll()
        by_number = {client.fileno(): client for client in self.clients}
        for client in self.clients[:requests]:
            poll.register(client, select.POLLIN)
            client.sendall(REQUEST)
        sent, answered = min(requests, len(self.clients)), 0
        while answered < requests:
            ready = poll.poll(30_000)
            if not ready:
                raise Failure("no answer")
            for number, _ in ready:
                client = by_number[number]
                _answer(client)
                answered += 1
                if sent < requests:
                    client.sendall(REQUEST)
                    sent += 1


def upload(server, seconds, size):
    """Uploads on one connection, one after the other. Returns the number and the time."""
    head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
    piece = memoryview(bytes(min(size, MIB)))
    with server.connect() as client:
        started = time.perf_counter()
        count = 0
        while (took := time.perf_counter() - started) < seconds or count == 0:
            client.sendall(head)
            for _ in range(size // len(piece)):
                client.sendall(piece)
            if _answer(client) != str(size).encode():
                raise Failure("not all of it was read")
            count += 1
        return count, took


def echo(server, seconds, size):
    """Sends bodies that come back, each on a new connection. Returns the number and the time."""
    head = (f"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Length: {size}\r\n\r\n").encode()
    piece = memoryview(bytes(min(size, MIB)))
    into = bytearray(MIB)

    def send(client):
        try:
            client.sendall(head)
            for _ in range(size // len(piece)):
                client.sendall(piece)
        except OSError:
            pass  # The reader notices missing bytes.

    started = time.perf_counter()
    count = 0
    while (took := time.perf_counter() - started) < seconds or count == 0:
        with server.connect() as client:
            sender = threading.Thread(target=send, args=(client,))
            sender.start()
            received = 0
            try:
                while n := client.recv_into(into):
                    received += n
            except OSError as error:
                raise Failure(f"after {received} bytes: {error}") from error
            finally:
                client.close()
                sender.join()
        if received < size:
            raise Failure(f"{received} of {size} bytes came back")
        count += 1
    return count, took


class InFlight:
    """A request whose body is not complete yet."""

    def __init__(self, server):
        self.client = server.connect()
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\n"
        self.client.sendall(head + b"1234")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def finish(self):
        """Sends the rest and reads the response."""
        self.client.sendall(b"5678")
        response = b""
        while not (response.endswith(b"5678") or response.endswith(b"0\r\n\r\n")):
            piece = self.client.recv(4096)
            if not piece:
                raise Failure("the request in flight was cut")
            response += piece


def close_as_closed(server, sockets, patience):
    """Closes each socket when the server does, until the server has ended. Returns True if it has.

    The loop takes a few sockets at a time, because the server may end while they are closed.
    """
    by_number = {client.fileno(): client for client in sockets}
    deadline = time.monotonic() + patience
    with select.epoll() as poll:
        for number in [server.pidfd, *by_number]:
            poll.register(number, select.EPOLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = poll.poll(left, 16)
            if server.has_ended():
                return True
            for number, _ in ready:
                if number == server.pidfd:
                    continue
                try:
                    gone = not by_number[number].recv(4096)
                except OSError:
                    gone = True
                if gone:
                    by_number[number].close()
    return False


def _ask(client):
    # tide writes head and body apart and without TCP_NODELAY, and should not wait 40 ms for an ACK.
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    client.sendall(REQUEST)
    return _answer(client)


def _answer(client):
    """Reads a response with a Content-Length, and returns its body."""
    response = client.recv(65536)
    while True:
        head, blank, body = response.partition(b"\r\n\r\n")
        if blank:
            if not head.startswith(b"HTTP/1.1 200"):
                raise Failure(head.split(b"\r\n")[0].decode(errors="replace"))
            length = re.search(rb"(?im)^content-length: *(\d+)", head)
            if not length:
                raise Failure("a response without a length")
            if len(body) >= int(length[1]):
                return body
        piece = client.recv(65536)
        if not piece:
            raise Failure("the connection was closed")
        response += piece
