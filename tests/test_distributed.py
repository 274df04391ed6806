"""Several processes: what one of them does first."""

import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from distributed import Ranks


def wait_for_master(rank: int, folder: str) -> None:
    """The group's time-out is 2 s; the master works for 4 s."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    ranks = Ranks.start("cpu", timedelta(seconds=2))

    def work():
        time.sleep(4)
        with open(f"{folder}/made", "x") as file:
            file.write(str(rank))

    ranks.master_first(work)
    assert Path(folder, "made").read_text() == "0"
    ranks.close()


@pytest.mark.slow
def test_the_others_wait_longer_than_their_time_out(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    mp.spawn(wait_for_master, (str(tmp_path),), nprocs=2)


def test_one_process_works_at_once():
    done = []
    Ranks(0, 1, None).master_first(lambda: done.append(1))
    assert done == [1]
