"""The needs of a run: programs, cores, open files. If one is missing, the run ends with a line."""

import os
import resource
import shutil
import sys
from pathlib import Path

# The Debian package of each program.
PACKAGES = {"wrk": "wrk", "strace": "strace", "perf": "linux-perf", "valgrind": "valgrind", "go": "golang-go",
            "cargo": "cargo", "git": "git"}


def give_up(why):
    """Ends the program with one line that begins with its name."""
    sys.exit(f"{Path(sys.argv[0]).name}: {why}")


def require(programs):
    """Checks that these programs are there."""
    missing = [PACKAGES[program] for program in programs if not shutil.which(program)]
    if missing:
        give_up(f"missing; try: apt-get install {' '.join(missing)}")


def add_cores(parser, server="0", load="1"):
    """Adds the flags for the cores of the server and of the load."""
    parser.add_argument("--server-cores", default=server, metavar="LIST",
                        help="default: %(default)s")
    parser.add_argument("--load-cores", default=load, metavar="LIST", help="default: %(default)s")


def take_cores(options):
    """Makes sets of the two flags, and pins this process, whose affinity the load inherits."""
    for option in ("server_cores", "load_cores"):
        try:
            setattr(options, option, {int(core) for core in getattr(options, option).split(",")})
            os.sched_setaffinity(0, getattr(options, option))
        except (OSError, ValueError):
            give_up(f"--{option.replace('_', '-')}: no such cores here")


def allow_files(connections):
    """Lets this process, and the servers that inherit the limit, have this number of connections
    each. A process has one end of each connection, and may have a thousand other files."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = connections + 1000
    if hard != resource.RLIM_INFINITY and hard < needed:
        give_up(f"{connections:,} connections need `ulimit -Hn` of {needed:,}; it is {hard:,}")
    files = 2 * connections if hard == resource.RLIM_INFINITY else min(hard, 2 * connections)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def say(line):
    """Prints the progress."""
    print(line, file=sys.stderr, flush=True)
