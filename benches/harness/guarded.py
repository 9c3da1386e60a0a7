"""The counts of a request that `benches/guard` compares: those of the commit, and those of now."""

import re
from dataclasses import dataclass

# How much dearer a request may be.
MORE_INSTRUCTIONS = 1.03
# How many system calls may come on top: medians differ by less than 0.1 from run to run.
MORE_CALLS = 0.3


@dataclass(frozen=True)
class Counts:
    """Instructions and system calls of one request, and the compiler they are of."""

    instructions: float
    calls: float
    compiler: str

    @classmethod
    def read(cls, text):
        """From what `written` gives; a ValueError says what is missing."""
        instructions = re.search(r"(?m)^(\d+) by (.+)$", text)
        calls = re.search(r"(?m)^(\d+\.\d+) system calls$", text)
        if not instructions:
            raise ValueError("no line such as `29535 by rustc 1.95.0`")
        if not calls:
            raise ValueError("no line such as `3.80 system calls`")
        return cls(int(instructions[1]), float(calls[1]), instructions[2])

    def written(self):
        """As the committed file has it."""
        return f"{self.instructions:.0f} by {self.compiler}\n{self.calls:.2f} system calls\n"

    @property
    def most_instructions(self):
        return MORE_INSTRUCTIONS * self.instructions

    @property
    def most_calls(self):
        return self.calls + MORE_CALLS

    def dearer(self, is_now):
        """Says in words which count has become dearer than it may. Empty if none has."""
        found = []
        if is_now.instructions > self.most_instructions:
            found.append(f"{is_now.instructions / self.instructions - 1:.1%} more instructions")
        if is_now.calls > self.most_calls:
            found.append(f"{is_now.calls - self.calls:.2f} more system calls")
        return ", ".join(found)
