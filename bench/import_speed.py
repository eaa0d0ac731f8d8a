#!/usr/bin/env python3
"""How fast `moraine import` is beside the drive: bytes read and written a second, CPU and peak memory; and what
the drive does, in the same run, with reads and writes of the same proportion that compute nothing.

    bench/make_checkpoint.py DIR --layers 8
    bench/import_speed.py MORAINE DIR STORE [-- --experts q4]

STORE is made and removed again. The checkpoint's pages are dropped before each run (its own only: no root). The
bound is O_DIRECT, 4 MiB at a time, of as many threads as --depth, reads of the checkpoint beside writes of a file
in STORE's directory, until each has done its share.
"""
import argparse
import json
import mmap
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import threading
import time

PIECE = 4 << 20


def drop_cache(paths):
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


class Work:
    """Pieces that several threads take from one list."""

    def __init__(self, pieces):
        self.pieces, self.lock = pieces, threading.Lock()

    def run(self, move):
        buffer = mmap.mmap(-1, PIECE)  # page-aligned
        buffer[:] = os.urandom(PIECE)
        while True:
            with self.lock:
                if not self.pieces:
                    return
                piece = self.pieces.pop()
            move(buffer, *piece)


def drive_seconds(sources, target, read_bytes, write_bytes, depth):
    reads, fds = [], [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in sources]
    for fd, path in zip(fds, sources):
        size = os.stat(path).st_size // PIECE
        reads += [(fd, i * PIECE) for i in range(size)]
    reads = reads[:read_bytes // PIECE]
    out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    os.posix_fallocate(out, 0, max(write_bytes, PIECE))
    writes = [(out, i * PIECE) for i in range(write_bytes // PIECE)]
    jobs = [(Work(reads), lambda b, fd, at: os.preadv(fd, [b], at)),
            (Work(writes), lambda b, fd, at: os.pwritev(fd, [b], at))]
    threads = [threading.Thread(target=work.run, args=(move,))
               for work, move in jobs for _ in range(depth)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.fdatasync(out)
    seconds = time.monotonic() - begin
    for fd in (*fds, out):
        os.close(fd)
    os.unlink(target)
    return seconds


def bytes_below(directory):
    return sum(path.stat().st_size for path in pathlib.Path(directory).rglob("*") if path.is_file())


def import_once(command, sources, store):
    drop_cache(sources)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    summary = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    seconds = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    written = bytes_below(store)
    shutil.rmtree(store)
    return {"seconds": seconds, "written": written, "user": after.ru_utime - before.ru_utime,
            "system": after.ru_stime - before.ru_stime, "peak_rss_mb": after.ru_maxrss / 1000,
            **{key: summary[key] for key in ("threads", "reading_seconds", "encoding_seconds",
                                             "writing_seconds", "waiting_seconds") if key in summary}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("moraine")
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("store")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--depth", type=int, default=4, help="threads that read, and as many that write")
    arguments = sys.argv[1:]
    options = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, options = arguments[:at], arguments[at + 1:]
    a = parser.parse_args(arguments)
    sources = sorted(a.checkpoint.glob("*.safetensors"))
    read = sum(path.stat().st_size for path in sources)
    command = [a.moraine, "import", str(a.checkpoint), a.store, "--quiet", "--json", *options]
    results = []
    for _ in range(a.runs):
        run = import_once(command, sources, a.store)
        # An eighth is enough to know the drive.
        part = drive_seconds(sources, a.store + ".probe", read // 8, run["written"] // 8, a.depth)
        run.update({"read_gb_s": read / run["seconds"] / 1e9, "drive_gb_s": read / 8 / part / 1e9,
                    "of_drive": 8 * part / run["seconds"], "load": os.getloadavg()[0]})
        results.append(run)
        print(json.dumps({key: round(value, 3) for key, value in run.items()}), flush=True)
    middle = sorted(results, key=lambda run: run["seconds"])[len(results) // 2]
    print(f"{read / 1e9:.1f} GB read, {middle['written'] / 1e9:.1f} GB written: {middle['read_gb_s']:.2f} GB/s "
          f"read (median); the drive alone: {middle['drive_gb_s']:.2f} GB/s read beside the writes")


if __name__ == "__main__":
    main()
