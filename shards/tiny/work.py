"""Stages of work: each is written once, several side by side behind one progress bar."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

seconds_done = None  # of all processes of the pool, which share it


class Stage(NamedTuple):
    """A folder to write, from nothing but code."""

    write: Callable[[Path], None]
    seconds: float  # of one core, roughly: how far the bar moves


def progress(seconds: float) -> None:
    """Says that so much of a Stage's seconds is done."""
    if seconds_done is not None:
        with seconds_done.get_lock():
            seconds_done.value += seconds


def stage(path: Path, write: Callable, *details) -> None:
    """Writes a missing folder, under another name first, so that a folder is complete."""
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        torch.manual_seed(0)
        write(part, *details)
        part.rename(path)


def side_by_side(stages: dict[Path, Stage]) -> None:
    """Writes the missing ones, two at a time, with one thread each.

    Two threads would be slower on such small models, and would round otherwise than one. A failure
    ends all processes.
    """
    missing = {path: s for path, s in stages.items() if not path.exists()}
    if not missing:
        return
    method = "spawn" if torch.cuda.is_initialized() else None  # CUDA does not survive a fork
    processes = multiprocessing.get_context(method)
    done = processes.Value("d")
    total = sum(s.seconds for s in missing.values())
    layout = "{desc}{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with (
        ProcessPoolExecutor(2, processes, begin, (done,)) as pool,
        tqdm(total=total, bar_format=layout) as bar,
    ):
        try:
            waiting = {pool.submit(stage, path, s.write): path.name for path, s in missing.items()}
            while waiting:
                bar.set_description(f"making {', '.join(waiting.values())}", refresh=False)
                bar.update(min(done.value, total) - bar.n)
                for future in wait(waiting, 0.5, FIRST_COMPLETED).done:
                    future.result()
                    del waiting[future]
            bar.update(total - bar.n)
        except BaseException:
            for process in pool._processes.values():  # Python 3.14 has terminate_workers()
                process.terminate()
            raise


def begin(done) -> None:
    """Begins a process of the pool, with the number that it adds its progress to."""
    global seconds_done
    seconds_done = done
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Ends this process when its parent is gone, killed perhaps: it would write on."""
    multiprocessing.parent_process().join()
    os._exit(1)
