#!/usr/bin/env python3
"""GB/s of `moraine warm` beside what fio reads from the same pack, in turn, and the ratio.

    bench/warm_speed.py STORE [--moraine build/release/moraine] [--runs 5] [--order static] [--ram-budget 50%]

fio reads the pack from its beginning on, as many bytes as the warm before it, with O_DIRECT, 512 KiB a
request, 64 requests deep (what a warm has in flight). Medians; the ratio is the median of the ratios of
neighbours. One JSON object on stdout.
"""
import argparse
import json
import os
import statistics
import subprocess


def warm(arguments, extra):
    command = [arguments.moraine, "warm", arguments.store, "--order", arguments.order, "--json", *extra]
    summary = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return summary["gigabytes"], summary["gigabytes"] / summary["seconds"]


def raw(pack, gigabytes):
    command = ["fio", "--name=raw", f"--filename={pack}", "--readonly", "--rw=read", "--bs=512k",
               "--iodepth=64", "--direct=1", "--ioengine=io_uring", "--output-format=json",
               f"--size={int(gigabytes * 1e9) >> 20}m"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    read = report["jobs"][0]["read"]
    return read["io_bytes"] / (read["runtime"] * 1e-3) * 1e-9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--moraine", default="build/release/moraine")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--order", default="static")
    arguments, extra = parser.parse_known_args()
    pack = os.path.join(arguments.store, "packs", "experts-000.pack")
    runs = []
    for _ in range(arguments.runs):
        gigabytes, speed = warm(arguments, extra)
        runs.append((gigabytes, speed, raw(pack, gigabytes)))
    print(json.dumps({"order": arguments.order, "gigabytes": runs[0][0],
                      "warm_gb_per_s": statistics.median(r[1] for r in runs),
                      "raw_gb_per_s": statistics.median(r[2] for r in runs),
                      "ratio": statistics.median(r[1] / r[2] for r in runs)}))


if __name__ == "__main__":
    main()
