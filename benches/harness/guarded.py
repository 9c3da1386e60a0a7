"""The counts of a request that `benches/guard` compares: the committed ones and the new ones."""

import re
from dataclasses import dataclass

# The largest ratio of the instructions of a request to the committed number.
MORE_INSTRUCTIONS = 1.03
# The largest increase of the system calls. Medians differ by less than 0.1 from run to run.
MORE_CALLS = 0.3


@dataclass(frozen=True)
class Counts:
    """Instructions and system calls of one request, and the compiler of the server."""

    instructions: float
    calls: float
    compiler: str

    @classmethod
    def read(cls, text):
        """Reads the text of `written`. A ValueError names a missing part."""
        instructions = re.search(r"(?m)^(\d+) by (.+)$", text)
        calls = re.search(r"(?m)^(\d+\.\d+) system calls$", text)
        if not instructions:
            raise ValueError("no line such as `29535 by rustc 1.95.0`")
        if not calls:
            raise ValueError("no line such as `3.80 system calls`")
        return cls(int(instructions[1]), float(calls[1]), instructions[2])

    def written(self):
        """Returns the text of the committed file."""
        return f"{self.instructions:.0f} by {self.compiler}\n{self.calls:.2f} system calls\n"

    @property
    def most_instructions(self):
        return MORE_INSTRUCTIONS * self.instructions

    @property
    def most_calls(self):
        return self.calls + MORE_CALLS

    def dearer(self, is_now):
        """Returns a text that names each count above its limit. It is empty if there is none."""
        found = []
        if is_now.instructions > self.most_instructions:
            found.append(f"{is_now.instructions / self.instructions - 1:.1%} more instructions")
        if is_now.calls > self.most_calls:
            found.append(f"{is_now.calls - self.calls:.2f} more system calls")
        return ", ".join(found)
