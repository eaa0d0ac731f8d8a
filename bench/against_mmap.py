#!/usr/bin/env python3
"""Moraine beside llama.cpp over mmap, in memory cgroups of the same size, on one drive.

    bench/against_mmap.py GGUF STORE [--memory 16,10,6,4] [--readahead 128,default] [--rounds 2]
        [--llama-bench PATH]

GGUF is written by make_gguf, STORE is imported from it: the same weights. The peer is installed by
`npm install --prefix bench/peers`; --llama-bench adds another build of llama.cpp or of a fork, by its
own benchmark program. Needs root: it makes memory cgroups, sets the drive's readahead
(put back at the end, also after an error), drops the page cache before every run.
docs/against_mmap.md has the method. One JSON line a memory limit on stdout, a table on stderr.
"""
import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile

PEERS = pathlib.Path(__file__).resolve().parent / "peers"


class MemoryCgroup:
    """A memory cgroup (v1 or v2) of its own, removed at the end. None: no limit, no cgroup."""

    def __init__(self, limit_bytes):
        self.limit_bytes, self.path = limit_bytes, None
        if limit_bytes is None:
            return
        for parent, limit_file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                                   ("/sys/fs/cgroup", "memory.max")):
            self.path = pathlib.Path(parent) / f"moraine-against-mmap-{os.getpid()}"
            if not (pathlib.Path(parent) / "cgroup.procs").exists():
                continue
            self.path.mkdir()
            try:
                (self.path / limit_file).write_text(str(limit_bytes))
                return
            except OSError:
                self.path.rmdir()
        sys.exit("against_mmap: no memory cgroup can be made: expected root and a memory "
                 "controller under /sys/fs/cgroup")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.path:
            self.path.rmdir()

    def enter(self):
        if self.path:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def run(self, command, whole=False, **environment):
        """stdout, or its last line, as JSON; None, with a line on stderr, if the command failed."""
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment},
            preexec_fn=self.enter)
        if result.returncode == 0:
            return json.loads(result.stdout if whole else result.stdout.splitlines()[-1])
        print(f"{command[0]} failed with {result.returncode} (-9: killed for memory): "
              f"{result.stderr.strip()[-400:]}", file=sys.stderr)
        return None


class Drive:
    """The block device under a file: its readahead, and dropping what is cached of it."""

    def __init__(self, path):
        source = subprocess.run(["df", "--output=source", path], check=True, capture_output=True,
                                text=True).stdout.splitlines()[-1]
        device = pathlib.Path("/sys/class/block", os.path.basename(source)).resolve()
        if not (device / "queue").is_dir():
            device = device.parent  # a partition
        self.name = device.name
        self.readahead_file = device / "queue/read_ahead_kb"
        if not self.readahead_file.exists():
            sys.exit(f"against_mmap: {path} lies on {source}, expected a block device with a queue")
        self.own_readahead = self.readahead_file.read_text().strip()

    @contextlib.contextmanager
    def readahead(self, kib):
        try:
            if kib != "default":
                self.readahead_file.write_text(kib)
            yield
        finally:
            self.readahead_file.write_text(self.own_readahead)

    @staticmethod
    def drop_cache():
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def run_node_llama_cpp(cgroup, args):
    # With all in memory the peer may keep its repacked copy: that is its fastest.
    preload = {"LD_PRELOAD": args.preload} if cgroup.limit_bytes else {}
    return cgroup.run(["node", str(PEERS / "llama_cpp.mjs"), args.gguf, str(args.prefill),
                       str(args.decode), str(args.threads)], **preload)


def run_llama_bench(cgroup, args):
    """llama-bench prefills and decodes without a break, but starts its decode without a context. It has
    no figure for bytes. With all in memory it may repack (ik_llama.cpp: when asked) and warm up."""
    repack = ["-rtr", "1"] if args.llama_bench_repacks and not cgroup.limit_bytes else []
    runs = cgroup.run([args.llama_bench, "-m", args.gguf, "-p", str(args.prefill), "-n", str(args.decode),
                       "-t", str(args.threads), "-r", "1", "-w", "0" if cgroup.limit_bytes else "1",
                       "-o", "json", *repack], whole=True)
    if runs is None:
        return None
    unknown = {"bytes_per_token": None, "read_gb_per_s": None, "major_faults_per_token": None}
    speed = {"decode" if run["n_gen"] else "prefill": run["avg_ts"] for run in runs}
    return {"peer": f"{args.llama_bench} {runs[0]['build_commit']}",
            **{phase: {"tok_per_s": tok_per_s, **unknown} for phase, tok_per_s in speed.items()}}


def run_moraine(cgroup, args):
    """`moraine bench` for both phases, each in a process of its own that starts with an empty cache."""
    figures = {}
    budget = str(cgroup.limit_bytes or "100%")
    common = ["--rounds", "1", "--json", "--threads", str(args.threads), "--ram-budget", budget,
              "--prompt-tokens", str(args.prefill)]
    # The peer's first tokens fill its page cache from its prompt on, so ours are counted from the first too.
    phases = {"prefill": [], "decode": ["--warm-tokens", "0", "--tokens", str(args.decode)]}
    for phase, options in phases.items():
        if not cgroup.limit_bytes:
            options = [*options, "--warm"]
        run = cgroup.run([args.moraine, "bench", phase, args.store, *common, *options])
        if run is None:
            return None
        figures["drive_gb_per_s"] = run["drive_gb_per_s"]
        figures[phase] = {"tok_per_s": run["tok_per_s"], "bound_tok_per_s": run["bound_tok_per_s"],
                          "bytes_per_token": run["mib_per_token"] * 2**20}
    return figures


def median_of(runs, *keys):
    values = []
    for run in runs:
        for key in keys:
            run = run[key]
        values.append(run)
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def compare(args, drive, gigabytes):
    limit_bytes = None if gigabytes == "all" else int(float(gigabytes) * 1e9)
    programs = [run_node_llama_cpp] + ([run_llama_bench] if args.llama_bench else [])
    settings = [(program, kib) for program in programs for kib in args.readahead.split(",")]
    peers, ours = {setting: [] for setting in settings}, []
    with MemoryCgroup(limit_bytes) as cgroup:
        for _ in range(args.rounds):  # in turn, so that a slow minute hits all alike
            for program, kib in settings:
                with drive.readahead(kib):
                    drive.drop_cache()
                    peers[program, kib].append(program(cgroup, args))
            drive.drop_cache()
            ours.append(run_moraine(cgroup, args))
    peers = {setting: [r for r in runs if r] for setting, runs in peers.items()}
    ours = [r for r in ours if r]
    row = {"bench": "against_mmap", "memory_gb": limit_bytes and float(gigabytes), "rounds": args.rounds,
           "threads": args.threads, "load_average": os.getloadavg()[0], "peers": [],
           "moraine": None}
    for (_, kib), runs in peers.items():
        if not runs:
            continue
        row["peers"].append({
            "name": runs[0]["peer"],
            "readahead_kib": drive.own_readahead if kib == "default" else kib,
            **{f"{phase}_{key}": median_of(runs, phase, key)
               for phase in ("prefill", "decode")
               for key in ("tok_per_s", "bytes_per_token", "read_gb_per_s",
                           "major_faults_per_token")}})
    if ours:
        row["moraine"] = {"drive_gb_per_s": median_of(ours, "drive_gb_per_s"),
                          **{f"{phase}_{key}": median_of(ours, phase, key)
                             for phase in ("prefill", "decode")
                             for key in ("tok_per_s", "bytes_per_token", "bound_tok_per_s")}}
    for phase in ("prefill", "decode"):
        key = f"{phase}_tok_per_s"
        best = max((p[key] for p in row["peers"]), default=None)
        row[f"{phase}_best_peer_tok_per_s"] = best
        row[f"{phase}_ratio"] = row["moraine"][key] / best if best and row["moraine"] else None
        row[f"{phase}_fraction_of_bound"] = (
            row["moraine"][key] / row["moraine"][f"{phase}_bound_tok_per_s"]
            if row["moraine"] else None)
    return row


def print_rows(rows):
    print(f"{'GB':>5} {'phase':8} {'best peer':>10} {'moraine':>9} {'ratio':>6} {'bound':>8} "
          f"{'of bound':>8} {'MB/token':>9}", file=sys.stderr)

    def show(value, width, suffix):
        return "-".rjust(width) if value is None else format(value, f"{width}{suffix}")

    for row in rows:
        ours = row["moraine"] or {}
        for phase in ("prefill", "decode"):
            size = ours.get(f"{phase}_bytes_per_token")
            print(f"{row['memory_gb'] or 'all':>5} {phase:8}",
                  show(row[f"{phase}_best_peer_tok_per_s"], 10, ".2f"),
                  show(ours.get(f"{phase}_tok_per_s"), 9, ".2f"),
                  show(row[f"{phase}_ratio"], 6, ".2f"),
                  show(ours.get(f"{phase}_bound_tok_per_s"), 8, ".2f"),
                  show(row[f"{phase}_fraction_of_bound"], 8, ".1%"),
                  show(None if size is None else size / 1e6, 9, ".1f"), file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf")
    parser.add_argument("store")
    parser.add_argument("--memory", default="16,10,6,4",
                        help="GB (10^9 bytes) of the whole process, or all: no limit")
    parser.add_argument("--readahead", default="128,default", help="KiB, for the peer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=128)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--moraine", default="build/release/moraine")
    parser.add_argument("--llama-bench", metavar="PATH", help="another peer: its llama-bench")
    parser.add_argument("--llama-bench-repacks", action="store_true",
                        help="it is ik_llama.cpp's, and repacks at run time with -rtr 1 where memory has room")
    args = parser.parse_args()
    if not (PEERS / "node_modules").exists():
        sys.exit(f"against_mmap: no peer; expected after: npm install --prefix {PEERS}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the readahead is put back
    drive = Drive(args.gguf)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        args.preload = f"{scratch}/no_repack.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", args.preload, str(PEERS / "no_repack.c")],
                       check=True)
        for gigabytes in args.memory.split(","):
            rows.append(compare(args, drive, gigabytes))
            print(json.dumps(rows[-1]), flush=True)
    print_rows(rows)


if __name__ == "__main__":
    main()
