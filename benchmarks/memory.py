"""How far a process grows that serves many threads: python memory.py URL THREADS CACHE_BYTES."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from pathlib import Path

import workloads

from langgraph_harness_saver import HarnessCheckpointer


def grown(url: str, threads: int, cache_bytes: int) -> int:
    """Return by how many bytes a process of its own grows."""
    command = [sys.executable, __file__, url, str(threads), str(cache_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def resident() -> int:
    """Return the bytes of memory that this process takes now."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    kilobytes = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return int(kilobytes.stdout) << 10


async def serve(url: str, threads: int, cache_bytes: int) -> int:
    """Serve threads of four turns each, with what all processes need loaded before."""
    async with HarnessCheckpointer.from_conn_string(url, cache_bytes=cache_bytes) as saver:
        await workloads.serve(saver, 2, 3)
        gc.collect()
        before = resident()
        await workloads.serve(saver, threads, 4)
        gc.collect()
        return resident() - before


if __name__ == "__main__":
    print(asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
