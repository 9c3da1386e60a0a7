"""The servers that are compared, and their builds."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .machine import give_up

BENCHES = Path(__file__).resolve().parent.parent
REPOSITORY = BENCHES.parent
PEERS_CRATE = BENCHES / "peers"


@dataclass(frozen=True)
class Peer:
    """A server: its binary, its feature, its name, and the crates whose versions are shown."""

    key: str
    name: str
    crates: tuple = ()
    stops: bool = False  # finishes what is in flight when it gets TERM


PEERS = [
    Peer("ours", "smol-graceful", stops=True),
    # smol-graceful at an earlier commit, which only `benches/compare --before` measures.
    Peer("before", "state before", stops=True),
    Peer("naive", "async-h1, naive", ("async-h1", "smol")),
    Peer("tide", "tide", ("tide", "async-h1", "async-std")),
    Peer("trillium", "trillium-smol", ("trillium", "trillium-smol"), stops=True),
    Peer("hyper-smol", "hyper on smol", ("hyper", "smol-hyper", "smol")),
    Peer("hyper-tokio", "hyper, tokio", ("hyper", "tokio"), stops=True),
    Peer("axum", "axum", ("axum", "hyper", "tokio"), stops=True),
    Peer("actix", "actix-web", ("actix-web", "tokio"), stops=True),
    Peer("go", "Go net/http", stops=True),
]


def target_dir():
    """Returns the directory of binaries and figures, in `target/` or in CARGO_TARGET_DIR."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target" / "benches").absolute()


def build(peer):
    """Builds a server and returns its binary."""
    if peer.key != "go":
        return build_own(peer.key, peer.name)
    binary = target_dir() / "release" / "go-net-http"
    command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "main.go"]
    return _built(binary, command, PEERS_CRATE / "go", peer.name)


def build_own(key, name):
    """Builds the binary of a feature of this name in `peers/`, and returns it."""
    binary = target_dir() / "release" / key
    command = ["cargo", "build", "--release", "--locked", "--quiet"]
    command += ["--no-default-features", "--features", key, "--bin", key]
    return _built(binary, command, PEERS_CRATE, name)


def build_commit(commit):
    """Builds smol-graceful at a commit, from that commit's `benches/peers`. Returns the binary."""
    sources = target_dir() / "before" / commit
    binary = target_dir() / "release" / f"ours-{commit}"
    if not sources.exists():
        # The directory gets its name when everything is there, so no run finds a part.
        fresh = sources.with_name(f"{commit}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        archive = subprocess.Popen(["git", "-C", REPOSITORY, "archive", commit],
                                   stdout=subprocess.PIPE)
        unpacked = subprocess.run(["tar", "-x", "-C", fresh], stdin=archive.stdout).returncode
        archive.stdout.close()
        if archive.wait() or unpacked:
            give_up(f"cannot unpack the commit {commit}")
        fresh.rename(sources)
    command = ["cargo", "build", "--release", "--locked", "--quiet"]
    command += ["--no-default-features", "--features", "ours", "--bin", "ours"]
    built = binary.with_name("ours")
    _built(built, command, sources / "benches" / "peers", f"smol-graceful at {commit}")
    # The next build would replace the binary.
    shutil.copy(built, binary)
    return binary


def commit_of(revision):
    """Returns the short name of a commit, or None if this repository has no such commit."""
    command = ["git", "-C", REPOSITORY, "rev-parse", "--verify", "--quiet", "--short=7",
               f"{revision}^{{commit}}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() or None


def version(peer):
    """Returns the versions of the parts of a server, such as `hyper 1.7.0, tokio 1.47.1`."""
    if peer.key == "go":
        return _first_line("go", "version").replace("go version ", "").split(" ")[0]
    if peer.key == "ours":
        return "commit " + _first_line("git", "-C", REPOSITORY, "describe", "--always", "--dirty")
    lock = (PEERS_CRATE / "Cargo.lock").read_text()
    versions = []
    for crate in peer.crates:
        found = re.findall(rf'name = "{crate}"\nversion = "([^"]+)"', lock)
        versions.append(f"{crate} {found[0]}" if found else crate)
    return ", ".join(versions)


def tools():
    """Returns the versions of the programs that build and measure."""
    rustc = _first_line("rustc", "--version").rsplit(" (", 1)[0]
    wrk = " ".join(_first_line("wrk", "-v").split(" ")[:2])
    return [rustc, wrk, _first_line("valgrind", "--version"),
            " ".join(_first_line("strace", "--version").split(" ")[::3])]


def _built(binary, command, where, name):
    binary.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, CARGO_TARGET_DIR=str(target_dir()), GO111MODULE="off")
    if subprocess.run(command, cwd=where, env=environment).returncode != 0:
        give_up(f"cannot build {name}")
    return binary


def _first_line(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (done.stdout.splitlines() or [""])[0].strip()
