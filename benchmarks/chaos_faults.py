"""The kinds of faults. Each hits a trial, puts back what it took, gives the command again, and asks for the verdict."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.chaos_trial import FORK, Trial, wait
from benchmarks.flaky_storage import FlakyStorage, now_and_then

DIED, SAID, STOPPED = -signal.SIGKILL, 2, 128 + signal.SIGTERM
BOUND = 90.0  # seconds within which a process must notice that another one is gone


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_step(step: int, act: Callable[[], None], *, before: bool = False) -> Callable[[], None]:
    """Once, when that many steps are done; `before`: in the middle of the next one."""

    def inject() -> None:
        from vdm.stages.base import Stage

        report, backward, done = Stage.report, Stage.manual_backward, []

        def once() -> None:
            if not done:
                done.append(step)
                act()

        def reporting(self: Any, values: dict, *, reduce: bool = True) -> None:
            report(self, values, reduce=reduce)
            if not before and self.step == step:
                once()

        def manual_backward(self: Any, *arguments: Any) -> None:
            if before and self.step == step:
                once()
            backward(self, *arguments)

        Stage.report, Stage.manual_backward = reporting, manual_backward

    return inject


def _last(trial: Trial) -> int:
    return 7 if trial.stage == "autoencoder" else 5


def _plain(trial: Trial) -> Any:
    return trial.world.reference(trial, "plain", lambda clean: clean.train())


def killed(trial: Trial, draw: Random) -> str:
    """Twice, so that what a kill leaves is met by a run that is killed again."""
    for _ in range(2):
        trial.train(_at_step(draw.randint(1, _last(trial)), _die, before=draw.random() < 0.5))
    trial.train()
    return trial.verdict(_plain(trial), [DIED, 0])


def killed_while_writing(trial: Trial, draw: Random) -> str:
    """Between two of the moments at which something must have reached the disk: in checkpoints, run.json, metrics."""
    left = draw.randint(3, 30)

    def inject() -> None:
        sync = os.fsync

        def dying_sync(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                _die()
            sync(descriptor)

        os.fsync = dying_sync

    trial.train(inject)
    trial.train()
    return trial.verdict(_plain(trial), [DIED, 0])


def killed_while_renaming(trial: Trial, draw: Random) -> str:
    left, before = draw.randint(2, 16), draw.random() < 0.5

    def inject() -> None:
        rename = os.rename

        def dying_rename(*arguments: Any, **more: Any) -> None:
            nonlocal left
            left -= 1
            if before and not left:
                _die()
            rename(*arguments, **more)
            if not left:
                _die()

        os.rename = os.replace = dying_rename

    trial.train(inject)
    trial.train()
    return trial.verdict(_plain(trial), [DIED, 0])


def dead_worker(trial: Trial, draw: Random) -> str:
    deadly, everybody = set(draw.sample(range(4, 16), 3)), draw.random() < 0.3

    def inject() -> None:
        from data.workers import WorkerPool

        submit = WorkerPool.submit

        def submitting(self: Any, ticket: int, request: Any) -> None:
            submit(self, ticket, request)
            if ticket in deadly:
                for worker in self._workers if everybody else self._workers[:1]:
                    with contextlib.suppress(ProcessLookupError):  # not yet replaced since the last time
                        os.kill(worker.process.pid, signal.SIGKILL)

        WorkerPool.submit = submitting

    trial.train(inject, "data.num_workers=2")
    return trial.verdict(_plain(trial), [0])


def full_disk(trial: Trial, draw: Random) -> str:
    """No file may grow beyond some bytes: what a quota and a full disk look like to whoever writes."""
    room = draw.choice([0, 500, 4_000, 50_000])

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    # What is said has room: it is kept where there is no limit.
    said = trial.output / "said.txt"
    trial.output.mkdir(parents=True)
    os.mkfifo(said.with_name("pipe"))
    reader = threading.Thread(target=_drain, args=(said.with_name("pipe"), said), daemon=True)
    reader.start()
    trial.train(_at_step(draw.randint(1, _last(trial) - 1), fill), said=said.with_name("pipe"))
    reader.join(10)
    trial.train()
    return trial.verdict(_plain(trial), [SAID])


def _drain(pipe: Path, target: Path) -> None:
    with open(pipe, encoding="utf-8", errors="replace") as source, open(target, "a", encoding="utf-8") as file:
        for line in source:
            file.write(line)


def _damaged(trial: Trial, draw: Random, harm: Callable[[Path], None]) -> str:
    """The newest checkpoint, while nobody looks; sometimes that of a run that was complete."""
    if draw.random() < 0.7:
        trial.train(_at_step(draw.randint(4, _last(trial)), _die))
    else:
        trial.train()
    newest = trial.run.last_checkpoint()
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    harm(draw.choice(files))
    trial.train()
    return trial.verdict(_plain(trial), [DIED, 0])


def flipped_bit(trial: Trial, draw: Random) -> str:
    def harm(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return _damaged(trial, draw, harm)


def cut_file(trial: Trial, draw: Random) -> str:
    def harm(path: Path) -> None:
        size = draw.randrange(path.stat().st_size)
        path.unlink() if draw.random() < 0.3 else os.truncate(path, size)

    return _damaged(trial, draw, harm)


def half_record(trial: Trial, draw: Random) -> str:
    trial.train(_at_step(draw.randint(1, _last(trial)), _die))
    record = trial.run.folder / "run.json"
    os.truncate(record, draw.randrange(record.stat().st_size))
    trial.train()
    return trial.verdict(_plain(trial), [DIED])


def vanished_shard(trial: Trial, draw: Random) -> str:
    """Behind the back of a run that has seen it at its start."""
    copy = trial.output / "datasets"
    shutil.copytree(trial.world.data, copy, copy_function=os.link)
    shard = draw.choice(sorted((copy / "shapes" / "train").glob("*.tar")))
    away = trial.output / "away.tar"

    def inject() -> None:
        from data.module import VideoData

        loader = VideoData.train_dataloader

        def train_dataloader(self: Any) -> Any:
            if shard.exists():
                shard.rename(away)
            return loader(self)

        VideoData.train_dataloader = train_dataloader

    where = f"paths.data_root={copy}"
    trial.train(inject, where, "data.cache.retries=2")
    away.rename(shard)
    trial.train(None, where)
    return trial.verdict(_plain(trial), [SAID])


def slow_files(trial: Trial, draw: Random) -> str:
    def inject() -> None:
        from data import reader

        read, sync = reader._pread, os.fsync

        def slow_read(*arguments: Any) -> bytes:
            time.sleep(draw.expovariate(40.0))
            return read(*arguments)

        def slow_sync(descriptor: int) -> None:
            time.sleep(draw.expovariate(40.0))
            sync(descriptor)

        reader._pread, os.fsync = slow_read, slow_sync

    trial.train(inject)
    return trial.verdict(_plain(trial), [0])


def flaky_storage(trial: Trial, draw: Random) -> str:
    kinds = ("503", "reset", "truncated", "wrong", "slow")
    with FlakyStorage(trial.world.data, faults=now_and_then(0.4, kinds, draw.randrange(10**6))) as storage:
        far = [f"paths.data_root={storage.url}", f"data.cache.folder={trial.output / 'cache'}", "data.cache.retries=12"]
        if draw.random() < 0.5:
            trial.train(_at_step(draw.randint(1, _last(trial)), _die), *far)
        trial.train(None, *far)
    return trial.verdict(_plain(trial), [DIED, 0])


def not_finite(trial: Trial, draw: Random) -> str:
    """So often in a row that the run goes back; then it is killed. It belongs to the data: the undisturbed run has it too."""
    first = draw.randint(3, 4)
    trial.more = ["stage.max_skipped=2"]

    def broken() -> None:
        from vdm.stages.base import Stage

        backward = Stage.manual_backward

        def manual_backward(self: Any, loss: Any, *arguments: Any) -> None:
            backward(self, loss * float("nan") if self.batches_seen in (first, first + 1) else loss, *arguments)

        Stage.manual_backward = manual_backward

    def broken_and_killed() -> None:
        broken()
        _at_step(draw.randint(2, _last(trial)), _die, before=draw.random() < 0.5)()

    reference = trial.world.reference(trial, f"not-finite-{first}", lambda clean: clean.train(broken))
    trial.train(broken_and_killed)
    trial.train(broken)
    outcome = trial.verdict(reference, [DIED, 0])
    return outcome if "Going back to" in trial.said() else "not as expected"


def dead_rank(trial: Trial, draw: Random) -> str:
    """One of two is killed: the other says so and ends, and both together end as two that nothing happened to."""
    trial.more = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
                  "data.batch_size=2"]  # fmt: skip
    reference = trial.world.reference(trial, "two ranks", lambda clean: clean.codes.extend(_two(clean)))
    victim = draw.randrange(2)
    before = draw.random() < 0.5
    codes = _two(trial, victim, _at_step(draw.randint(1, _last(trial)), _die, before=before))
    trial.codes += [codes[victim], codes[1 - victim]]
    if codes[victim] != DIED or codes[1 - victim] != SAID:
        return "hung" if None in codes else "not as expected"
    trial.codes += _two(trial)
    return trial.verdict(reference, [DIED, SAID, 0])


def _two(trial: Trial, victim: int | None = None, inject: Callable[[], None] | None = None) -> list[int | None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "TORCHELASTIC_RUN_ID": "chaos", "GROUP_RANK": "0"}  # fmt: skip
    ranks = [
        trial.start(
            inject if rank == victim else None, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    codes = wait(ranks if victim is None else [ranks[victim]])
    if victim is None:
        return codes
    (survivor,) = wait([ranks[1 - victim]], BOUND)
    return [survivor, *codes] if victim else [*codes, survivor]


def asked_to_stop(trial: Trial, draw: Random) -> str:
    step = draw.randint(1, _last(trial) - 1)
    trial.train(_at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    trial.train()
    return trial.verdict(_plain(trial), [STOPPED])


def started_twice(trial: Trial, draw: Random) -> str:
    """By a person and a scheduler: one trains, the other is told."""
    both = [trial.start(), trial.start(lambda: time.sleep(draw.random() * 0.5))]
    trial.codes += sorted(wait(both), key=lambda code: -1 if code is None else -code)
    trial.train()
    if SAID in trial.codes and "trained already" not in trial.said():
        return "not as expected"
    return trial.verdict(_plain(trial), [SAID, 0])


def suspended(trial: Trial, draw: Random) -> str:
    """As by a scheduler that lends the processor to somebody else."""

    def sleep() -> None:
        pid = os.getpid()
        FORK.Process(target=_wake, args=(pid,)).start()
        os.kill(pid, signal.SIGSTOP)

    trial.train(_at_step(draw.randint(1, _last(trial)), sleep, before=True))
    return trial.verdict(_plain(trial), [0])


def _wake(pid: int) -> None:
    time.sleep(1.0)
    os.kill(pid, signal.SIGCONT)


def killed_sampling(trial: Trial, draw: Random) -> str:
    trial.stage = "vdm"
    left, before = draw.randint(1, 4), draw.random() < 0.5

    def inject() -> None:
        replace = Path.replace

        def dying_replace(self: Path, target: Any) -> Path:
            nonlocal left
            left -= 1
            if before and not left:
                _die()
            found = replace(self, target)
            if not left:
                _die()
            return found

        Path.replace = dying_replace

    reference = trial.world.reference(trial, "samples", lambda clean: clean.sample())
    trial.sample(inject)
    trial.sample()
    return trial.verdict(reference, [DIED])


KINDS: dict[str, Callable[[Trial, Random], str]] = {
    "killed between or within steps": killed,
    "killed while writing": killed_while_writing,
    "killed while renaming": killed_while_renaming,
    "killed while sampling": killed_sampling,
    "asked to stop": asked_to_stop,
    "suspended": suspended,
    "dead data worker": dead_worker,
    "dead rank": dead_rank,
    "full disk": full_disk,
    "slow file system": slow_files,
    "flaky object store": flaky_storage,
    "vanished shard": vanished_shard,
    "flipped bit in the checkpoint": flipped_bit,
    "cut or deleted checkpoint file": cut_file,
    "half a run.json": half_record,
    "started twice": started_twice,
    "loss not finite": not_finite,
}
