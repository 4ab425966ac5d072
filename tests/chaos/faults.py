"""What is done to the service: one function per kind of fault, which says whether it met anything."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import psutil

from tests.chaos import journal
from tests.chaos.journal import Held
from tests.chaos.load import Load
from tests.chaos.receivers import Receiver
from tests.chaos.stage import Kept, Stage
from tests.servers import Running

SEEK_S = 1.5  # how long a fault waits for a worker to be in the middle of a row
SPELL_S, MET_S = 1.5, 4.0  # a receiver misbehaves this long, and is waited for this long to be asked
BEYOND_S = (1.0, 2.0)  # a frozen worker wakes so long after its lease has run out
FROZEN_S = (0.5, 2.5)
DOWN_S = (0.1, 1.0)
LOCKED_S = (0.5, 2.0)
STOP_S = 20.0


@dataclass
class Chaos:
    """The hands of one run; everything in it happens in one thread."""

    stage: Stage
    load: Load
    receivers: Sequence[Receiver]
    draw: random.Random
    made: Counter[str] = field(default_factory=Counter)
    kills: list[tuple[float, list[Held]]] = field(default_factory=list)
    frozen: list[tuple[float, Running]] = field(default_factory=list)

    def make(self, kind: str) -> bool:
        """Make one fault and count it when it met something."""
        met = FAULTS[kind](self)
        self.made[kind] += met
        return met

    def asleep(self) -> list[Running]:
        """Who is frozen now."""
        return [running for _, running in self.frozen]

    def wake(self, running: Running) -> None:
        """Let one go on at once, if it is frozen: what comes next is done to a process that runs."""
        for one in list(self.frozen):
            if one[1] is running:
                running.send(signal.SIGCONT)
                self.frozen.remove(one)

    def thaw(self, *, all: bool = False) -> None:
        """Let those go on whose time is over."""
        for one in list(self.frozen):
            until, running = one
            if all or until <= time.monotonic():
                running.send(signal.SIGCONT)
                self.frozen.remove(one)


# ---------------------------------------------------------------- workers


def _kill_child(chaos: Chaos) -> bool:
    """`kill -9` for one process of a pool, in the middle of a row where one is found."""
    found = _in_the_middle(chaos, lambda kept: [[child] for child in kept.children()])
    return found is not None and _killed(chaos, *found)


def _kill_tree(chaos: Chaos) -> bool:
    """`kill -9` for a worker and all that it started; a new one takes its place."""
    kept = chaos.draw.choice(chaos.stage.workers)
    found = _in_the_middle(chaos, lambda one: [_pool(one)], among=[kept])
    if found is None:
        return False
    _killed(chaos, *found)
    kept.start()
    return True


def _freeze_worker(chaos: Chaos) -> bool:
    """SIGSTOP in the middle of a row, for longer than its lease."""
    found = _in_the_middle(chaos, lambda one: [_pool(one)])
    if found is None:
        return False
    running = found[0].running
    assert running
    running.send(signal.SIGSTOP)
    until = time.monotonic() + chaos.stage.settings.lease_s + chaos.draw.uniform(*BEYOND_S)
    chaos.frozen.append((until, running))
    return True


def _poison(chaos: Chaos) -> bool:
    """The next upload kills whatever analyses it."""
    chaos.load.mark(poison=True)
    return True


def _cut_connections(chaos: Chaos) -> bool:
    """The database ends every session of one worker."""
    kept = chaos.draw.choice([*chaos.stage.workers, chaos.stage.sender])
    assert chaos.stage.database
    return chaos.stage.database.cut([process.pid for process in _pool(kept)]) > 0


# ---------------------------------------------------------------- broker and database


def _broker_restart(chaos: Chaos) -> bool:
    """`kill -9`, and started again with what its disk holds."""
    chaos.stage.broker.restart(keep=True, down=lambda: time.sleep(chaos.draw.uniform(*DOWN_S)))
    return True


def _broker_wipe(chaos: Chaos) -> bool:
    """`kill -9`, and started again empty."""
    chaos.stage.broker.restart(keep=False, down=lambda: time.sleep(chaos.draw.uniform(*DOWN_S)))
    return True


def _broker_flush(chaos: Chaos) -> bool:
    """Every bell and every queue is gone while it runs."""
    chaos.wake(chaos.stage.broker.tree())
    chaos.stage.broker.flush()
    return True


def _database_restart(chaos: Chaos) -> bool:
    """Half of the time a crash, half of the time a fast shutdown."""
    assert chaos.stage.database
    kill = chaos.draw.random() < 0.5
    chaos.stage.database.restart(kill=kill, down=lambda: time.sleep(chaos.draw.uniform(*DOWN_S)))
    return True


def _database_lock(chaos: Chaos) -> bool:
    """Another program holds SQLite's write lock for a while."""
    path = chaos.stage.settings.home / "hilum.db"
    with contextlib.closing(sqlite3.connect(path, timeout=STOP_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(chaos.draw.uniform(*LOCKED_S))
        connection.execute("ROLLBACK")
    return True


# ---------------------------------------------------------------- the service and its clients


def _api_restart(chaos: Chaos) -> bool:
    """In the middle of an upload, by `kill -9` or in good order."""
    api, gentle = chaos.stage.api, chaos.draw.random() < 0.3
    assert api.running
    chaos.wake(api.running)
    clients = partial(_clients, api.running)

    def arrived(port: int) -> bool:
        deadline = time.monotonic() + MET_S
        while (met := port in clients()) is False and time.monotonic() < deadline:
            time.sleep(0.005)
        return met

    def restart() -> None:
        if gentle:
            api.leave(STOP_S)
        api.start()

    return chaos.load.interrupted(arrived, restart)


def _clients(running: Running) -> set[int]:
    """The ports of the clients whose connections a process has taken."""
    with contextlib.suppress(psutil.Error):
        return {one.raddr.port for one in running.process.net_connections("tcp") if one.raddr}
    return set()


def _sweeper_kill(chaos: Chaos) -> bool:
    """`kill -9`; a new one must wait for its lease."""
    chaos.stage.sweeper.start()
    return True


def _sender_kill(chaos: Chaos) -> bool:
    """`kill -9` for the process that sends webhooks; what it was sending is sent again."""
    chaos.stage.sender.start()
    return True


def _freeze_other(chaos: Chaos) -> bool:
    """SIGSTOP for the sweeper, the sender of webhooks, the API or the broker, for a while."""
    stage = chaos.stage
    running = chaos.draw.choice([stage.sweeper.running, stage.sender.running, stage.api.running, stage.broker.tree()])
    if running is None or running in chaos.asleep():
        return False
    running.send(signal.SIGSTOP)
    chaos.frozen.append((time.monotonic() + chaos.draw.uniform(*FROZEN_S), running))
    return True


def _client_cut(chaos: Chaos) -> bool:
    """The next client breaks off, in the middle of its upload or before it has read the answer."""
    chaos.load.mark(cut=chaos.draw.choice(["early", "late"]))
    return True


def _receiver(spell: str) -> Callable[[Chaos], bool]:
    def misbehave(chaos: Chaos) -> bool:
        """A receiver has a bad spell, which counts once it has met a delivery."""
        receiver = chaos.draw.choice(chaos.receivers)
        receiver.misbehave(spell, SPELL_S)
        deadline = time.monotonic() + MET_S
        while not receiver.hits and time.monotonic() < deadline:
            if time.monotonic() > deadline - MET_S + SPELL_S:
                receiver.misbehave(spell, SPELL_S)
            chaos.thaw()
            time.sleep(0.02)
        return receiver.hits > 0

    return misbehave


FAULTS: dict[str, Callable[[Chaos], bool]] = {
    "kill_child": _kill_child,
    "kill_tree": _kill_tree,
    "freeze_worker": _freeze_worker,
    "poison": _poison,
    "broker_restart": _broker_restart,
    "broker_wipe": _broker_wipe,
    "broker_flush": _broker_flush,
    "database_restart": _database_restart,
    "cut_connections": _cut_connections,
    "database_lock": _database_lock,
    "api_restart": _api_restart,
    "sweeper_kill": _sweeper_kill,
    "sender_kill": _sender_kill,
    "freeze_other": _freeze_other,
    "client_cut": _client_cut,
    "receiver_timeout": _receiver("timeout"),
    "receiver_error": _receiver("error"),
    "receiver_drop": _receiver("drop"),
}


# ---------------------------------------------------------------- who is in the middle of what

Group = list[psutil.Process]


def _pool(kept: Kept) -> Group:
    """The processes that work; their parent only keeps them."""
    return kept.children()


def _in_the_middle(
    chaos: Chaos, groups: Callable[[Kept], list[Group]], among: Sequence[Kept] | None = None
) -> tuple[Kept, Group, list[Held]] | None:
    """A stopped group of processes that holds a row just now; None when none does for SEEK_S."""
    deadline = time.monotonic() + SEEK_S
    while time.monotonic() < deadline:
        chaos.thaw()
        all_groups = [
            (kept, group)
            for kept in among or chaos.stage.workers
            if kept.running not in chaos.asleep()
            for group in groups(kept)
        ]
        chaos.draw.shuffle(all_groups)
        for kept, group in all_groups:
            if not _held(chaos, group):
                continue
            _send(group, signal.SIGSTOP)
            if held := _held(chaos, group):
                return kept, group, held
            _send(group, signal.SIGCONT)
        time.sleep(0.005)
    return None


def _killed(chaos: Chaos, kept: Kept, group: Group, held: list[Held]) -> bool:
    chaos.kills.append((time.time(), held))
    _send(group, signal.SIGKILL)
    return True


def _held(chaos: Chaos, group: Group) -> list[Held]:
    found = []
    for process in group:
        with contextlib.suppress(psutil.Error):
            found += journal.holding(chaos.stage.journal, journal.name_of(process))
    return found


def _send(group: Group, number: signal.Signals) -> None:
    for process in group:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
