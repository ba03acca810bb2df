"""Processes played by threads: sums that wait for all, and a signal at any line.

No clock is read. Who waits for one that has left is told so at once: `Deserted`.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable

import torch

WALKS = {"gather_full", "sharded", "<dictcomp>", "<listcomp>"}


class Deserted(Exception):
    """A process waits in a collective for one that has left."""


class Crew:
    """Some processes, each a thread, that meet in collectives."""

    def __init__(self, ranks: int):
        self.ranks, self.room = ranks, threading.Condition()
        self.calls, self.said = [0] * ranks, []
        self.waiting, self.left = set(), set()

    def meet(self, rank: int, name: str, value) -> list:
        """What all say in a collective, by rank, once all have said it."""
        with self.room:
            call, self.calls[rank] = self.calls[rank], self.calls[rank] + 1
            if call == len(self.said):
                self.said.append({})
            said = self.said[call]
            said[rank] = name, value
            self.waiting.add(rank)
            self.room.notify_all()
            self.room.wait_for(
                lambda: len(said) == self.ranks or self.left - said.keys()
            )
            self.waiting.discard(rank)
            if len(said) < self.ranks:
                raise Deserted(name)
        assert len({name for name, _ in said.values()}) == 1
        return [said[rank][1] for rank in range(self.ranks)]

    def all_wait_for(self, rank: int) -> set[int]:
        """Wait until all others wait or have left; return those that have left."""
        others = {*range(self.ranks)} - {rank}
        with self.room:
            self.room.wait_for(lambda: others <= self.waiting | self.left)
            return set(self.left)

    def work(self, work: Callable) -> list:
        """What `work(process)` returns, or raises, in each process."""
        ends = [None] * self.ranks

        def run(rank: int) -> None:
            try:
                ends[rank] = work(Process(self, rank))
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                ends[rank] = error
            with self.room:
                self.left.add(rank)
                self.room.notify_all()

        threads = [threading.Thread(target=run, args=(r,)) for r in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ends


class Process:
    """Stands in for accelerate's Accelerator in one of the processes."""

    device, mixed_precision, scaler = "cpu", "no", None

    def __init__(self, crew: Crew, rank: int):
        self.crew, self.process_index, self.num_processes = crew, rank, crew.ranks
        self.is_main_process = rank == 0

    def reduce(self, tensor, how="sum"):
        said = self.crew.meet(self.process_index, f"reduce {how}", tensor.clone())
        total = torch.stack(said).sum(0)
        return total / self.num_processes if how == "mean" else total

    def agreed(self, value):
        return self.crew.meet(self.process_index, "agreed", value)[0]

    def backward(self, loss):
        loss.backward()
        self.crew.meet(self.process_index, "backward", None)


@contextlib.contextmanager
def signal_at_line(files: set[str], moment: int, received: list[int], held: Callable):
    """Put SIGTERM into `received` before line `moment` of those run in these files.

    Counted are the lines while `held()`, but not those of walks over a tree, which are
    many and alike. Yields a list as long as there are so far.
    """
    lines = []

    def note(frame, event, _):
        code = frame.f_code
        if code.co_filename not in files or code.co_name in WALKS:
            return None
        if event == "line" and held():
            lines.append(None)
            if len(lines) == moment:
                received.append(signal.SIGTERM)
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        yield lines
    finally:
        sys.settrace(before)
