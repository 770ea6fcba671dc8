"""One case: a target, a fault drawn from a seed, and what has become of everything."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from faults.command import Act, Ended, Started, at_work, descendants, left_over
from faults.place import draw_room, fill, read_only
from faults.targets import RayRuns, Runs, Target, promised
from faults.truth import Wrong
from faults.urls import UrlRuns

KILLS = ("SIGKILL", "SIGTERM", "SIGINT")
DISKS = ("full before", "full", "read-only before", "read-only")
OF_RAY = ("ray worker killed", "raylet killed", "two drivers")
OF_URL = ("requests dropped", "busy", "half an answer", "slow", "dead", "two machines")
OF_RUNS = ("worker killed", "store full", "store read-only", "two drivers", "cold")
SPOILT = ("drop", "busy", "half", "slow")
FAULTS = tuple(dict.fromkeys(KILLS + DISKS + OF_RAY + OF_URL + OF_RUNS))
TRIES = 6
"""A fault that came after the end is no run: another moment is drawn, so many times."""


@dataclass
class Case:
    """What came of one. ``tries`` counts commands that were disturbed in vain as well."""

    fault: str
    tries: int = 0
    landed: bool = False
    wrong: list[Wrong] = field(default_factory=list)


def faults_of(target: Target) -> tuple[str, ...]:
    disks = DISKS if target.world.place.mounts and target.name != "prune" else ()
    if isinstance(target, UrlRuns):
        return KILLS + OF_URL
    if isinstance(target, RayRuns):
        return KILLS + disks + OF_RAY if target.cluster is not None else (*KILLS, OF_RAY[0])
    if not isinstance(target, Runs) or target.name == "prune":
        return KILLS + disks
    own = OF_RUNS if disks else tuple(each for each in OF_RUNS if not each.startswith("store"))
    return KILLS + disks + own


def run_case(target: Target, seed: int, fault: str | None = None) -> Case:
    """Disturb ``target`` as ``seed`` says, then run it to its end, and look at what there is."""
    draw = random.Random(f"{target.name} {seed}")
    drawn = draw.choice(faults_of(target))
    case = Case(fault or drawn)
    while case.tries < TRIES and not case.landed:
        case.tries += 1
        place = target.world.place
        place.clean()
        target.prepare(draw)
        started: list[int] = []
        wrong = _disturbed(target, case, draw, started)
        case.landed = case.landed or bool(wrong)
        if not case.landed:
            continue
        case.wrong += wrong
        target.heal()
        case.wrong += target.left()
        again = Started(target.arguments(), place)
        started.append(again.pid)
        ended = again.end()
        wrong = target.ended()
        refused = not wrong and target.refusal is not None and target.refusal in ended.told
        case.wrong += promised(ended.status, (2,) if refused else (0,), ended) + wrong
        case.wrong += [Wrong("untidy", f"{name}: stays") for name in target.litter()]
        case.wrong += _processes(target, started)
    return case


def _disturbed(target: Target, case: Case, draw: random.Random, started: list[int]) -> list[Wrong]:
    """Run the command with the fault; how it ended, if that is not as promised."""
    place, fault = target.world.place, case.fault
    folder = place.store if fault.startswith("store") else place.out
    if fault.endswith("before"):
        fill(folder, draw_room(draw)) if fault.startswith("full") else read_only(folder)
        ended = _go(target, started).end()
        case.landed = True
        return _disk(target, case, ended)
    if "full" in fault or "read-only" in fault:
        room = draw_room(draw)
        act: Act = (lambda: fill(folder, room)) if "full" in fault else lambda: read_only(folder)
        ended = _go(target, started, _event(target, case, draw), act).end()
        case.landed = ended.landed
        return _disk(target, case, ended) if case.landed else []
    if isinstance(target, UrlRuns) and fault in OF_URL:
        return _of_url(target, case, draw, started)
    if isinstance(target, UrlRuns):
        target.tell(f"spoil {draw.choice(SPOILT)} {draw.choice((0, 10))}")
    if fault == "two drivers":
        return _two(target, case, draw, started)
    if fault in OF_RAY:
        return _of_ray(target, case, draw, started)
    if fault == "worker killed":
        return _worker(target, case, draw, started)
    if fault == "cold":
        command = _go(target, started, cold=True)
        # Not Ctrl-C: while Python itself starts it has its own words for it.
        number = draw.choice((signal.SIGTERM, signal.SIGKILL))
        case.landed = command.after(_moment(target, case, draw) * 2)
        if case.landed:
            os.killpg(command.pid, number)
        return _killed(number, command.end()) if case.landed else []
    number = signal.Signals[fault]
    if draw.random() < 0.6:
        act = _to_itself(number)
        ended = _go(target, started, _event(target, case, draw), act).end()
        case.landed = ended.landed
    else:
        command = _go(target, started)
        case.landed = command.after(_moment(target, case, draw))
        if case.landed:
            _send(command.pid, number)
        ended = command.end()
    if isinstance(target, UrlRuns) and ended.status in target.statuses():
        return promised(ended.status, target.statuses(), ended)  # the storage was before the kill
    return _killed(number, ended) if case.landed else []


def _go(
    target: Target,
    started: list[int],
    at: int | None = None,
    act: Act | None = None,
    more: Sequence[str] = (),
    name: str = "log",
    cold: bool = False,
    arguments: list[str] | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Started:
    place = target.world.place
    typed = [*(arguments or target.arguments()), *more]
    command = Started(typed, place, at, act, place.root / name, cold, environment)
    started.append(command.pid)
    return command


def _event(target: Target, case: Case, draw: random.Random) -> int:
    """Sooner, where it came too late before: of what is done already nothing is written."""
    return draw.randrange(max(1, target.events >> (case.tries - 1)))


def _moment(target: Target, case: Case, draw: random.Random) -> float:
    return draw.uniform(0, target.seconds / 2 ** (case.tries - 1))


def _to_itself(number: signal.Signals) -> Act:
    def act() -> bool:
        _send(os.getpid(), number)
        return True

    return act


def _send(pid: int, number: signal.Signals) -> None:
    """As a terminal does it: Ctrl-C goes to all processes of the command."""
    (os.killpg if number == signal.SIGINT else os.kill)(pid, number)


def _killed(number: signal.Signals, ended: Ended) -> list[Wrong]:
    """A command that was killed. One that has ended with 0 was at its last line."""
    allowed = (130, 0) if number == signal.SIGINT else (-number, 0)
    return promised(ended.status, allowed, ended)


def _disk(target: Target, case: Case, ended: Ended) -> list[Wrong]:
    """A disk fault: status 2 and what is wrong with which disk; of the feature store nothing but a
    notice. A command that had written all before it is done."""
    of_store = case.fault.startswith("store")
    wrong = promised(ended.status, (0,) if of_store else (0, 2), ended)
    reason = "No space left" if "full" in case.fault else "Read-only file system"
    if ended.status == 2 and reason not in ended.told:
        wrong.append(Wrong("untidy", f"does not say {reason!r}: {ended.told.strip()[-150:]}"))
    if ended.status == 0:
        wrong += [each for each in target.ended() if of_store or each.kind != "untidy"]
    return wrong


def _two(target: Target, case: Case, draw: random.Random, started: list[int]) -> list[Wrong]:
    """Two drivers on one folder; one is killed, the other has to bring everything."""
    kill = draw.random() < 0.7
    local = target.locally() if isinstance(target, RayRuns) else None
    other = _go(target, started, name="other", arguments=local)
    number = draw.choice((signal.SIGKILL, signal.SIGINT))
    act = _to_itself(number) if kill else None
    ended = _go(target, started, _event(target, case, draw), act).end()
    its = other.end()
    case.landed = ended.landed or not kill
    wrong = promised(its.status, (0,), its)
    wrong += _killed(number, ended) if ended.landed else promised(ended.status, (0,), ended)
    before, target.before = target.before, {}  # both may have run the same cell
    wrong += target.ended()
    target.before = before
    return wrong if case.landed or wrong else []


def _worker(target: Target, case: Case, draw: random.Random, started: list[int]) -> list[Wrong]:
    """A decoding process is killed: the command says so, or did not need it any more."""
    command = _go(target, started, more=("--workers=2",))
    command.after(_moment(target, case, draw))
    while command.running() and not case.landed:
        workers = list(descendants(command.pid))
        if workers:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.kill(draw.choice(workers), signal.SIGKILL)
                case.landed = True
        else:
            time.sleep(0.002)
    ended = command.end()
    return promised(ended.status, (0, 1, 2), ended) if case.landed else []


def _of_ray(target: Target, case: Case, draw: random.Random, started: list[int]) -> list[Wrong]:
    """A process that runs a piece or finishes a cell is killed, or the node that it may be on:
    the work is done again, and the command ends as if nothing had been."""
    assert isinstance(target, RayRuns)
    command = _go(target, started)
    command.after(_moment(target, case, draw))
    while command.running() and not case.landed:
        if case.fault == "raylet killed" and target.cluster is not None:
            target.cluster.tell("lose")
            case.landed = True
        elif workers := at_work(target.mark()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
                case.landed = True
        time.sleep(0.002)
    ended = command.end()
    if case.fault == "raylet killed" and case.landed and target.cluster is not None:
        target.cluster.tell("heal")
    return promised(ended.status, (0,), ended) + target.ended() if case.landed else []


def _of_url(target: UrlRuns, case: Case, draw: random.Random, started: list[int]) -> list[Wrong]:
    """The storage is in trouble: the run ends with all results, or says what it could not store.
    Of two machines on one URL one may be killed."""
    if case.fault == "dead":
        kind = draw.choice(("drop", "busy"))

        def act() -> bool:
            target.tell(f"spoil {kind} 1")
            return True

        ended = _go(target, started, _event(target, case, draw), act).end()
        case.landed = ended.landed
    elif case.fault == "two machines":
        target.tell(f"spoil {draw.choice(SPOILT)} {draw.choice((0, 10))}")
        two = {"HARNESS_CACHE_LOCAL": str(target.world.place.machine("two"))}
        other = _go(target, started, name="other", environment=two)
        number, kill = draw.choice((signal.SIGKILL, signal.SIGINT)), draw.random() < 0.7
        its_act = _to_itself(number) if kill else None
        ended = _go(target, started, _event(target, case, draw), its_act).end()
        its = other.end()
        case.landed = ended.landed or not kill
        allowed = (*target.statuses(), 130, -number) if ended.landed else target.statuses()
        wrong = promised(ended.status, allowed, ended)
        return wrong + promised(its.status, target.statuses(), its) if case.landed else []
    else:
        target.tell(f"spoil {SPOILT[OF_URL.index(case.fault)]} 10")
        ended = _go(target, started).end()
        case.landed = True
    if not case.landed:
        return []
    wrong = promised(ended.status, target.statuses(), ended)
    if ended.status and "s3://" not in ended.told:
        wrong.append(Wrong("untidy", f"does not name the URL: {ended.told.strip()[-150:]}"))
    # Both look at the bucket past the proxy. A run that has ended well has left everything there.
    return wrong + (target.ended() if ended.status == 0 else [])


def _processes(target: Target, started: Sequence[int]) -> list[Wrong]:
    """Findings about processes that stay; they are given ten seconds to see that they are alone,
    and are ended."""
    end = time.monotonic() + 10
    while (left := left_over(target.world.place, started)) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return [Wrong("untidy", f"process {pid} stays: {name}") for pid, name in left.items()]
