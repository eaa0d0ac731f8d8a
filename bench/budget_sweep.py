#!/usr/bin/env python3
"""tok/s, hit rate and bytes a token of one store at several RAM budgets, beside the drive's bound.

    bench/budget_sweep.py STORE [--moraine build/release/moraine] [--budgets 100%,50%,25%,10%]

Decodes greedily from one prompt, three runs a budget in turn, medians. Every run starts cold except for
the experts of the saved heat profile, as `moraine run` does. The bound is what the drive would allow with
the same misses if compute cost nothing: bytes a token over the bandwidth measured while reads were in
flight in the same run; with everything resident it is not defined. One JSON line a budget on stdout.
"""
import argparse
import json
import statistics
import subprocess
import sys


def run(moraine, store, budget, tokens, extra):
    command = [moraine, "run", store, "Once upon a time", "--raw", "--json", "--temperature", "0",
               "--ignore-eos", "--max-tokens", str(tokens), "--ram-budget", budget, *extra]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    stats = result["stats"]
    decode, lookups, reads = stats["decode"], stats["residency"]["decode"], stats["reads"]
    count = sum(lookups[k] for k in ("hit", "cold_miss", "in_flight_miss", "prefetch_hit"))
    read_bytes = reads["demand_bytes"] + reads["speculative_bytes"]
    drive = read_bytes / (reads["busy_ns"] * 1e-9) if reads["busy_ns"] else 0.0
    bytes_per_token = decode["bytes_read"] / decode["tokens"]
    return {
        "tok_per_s": decode["tokens"] / (decode["wall_ns"] * 1e-9),
        "hit_rate": (lookups["hit"] + lookups["prefetch_hit"]) / count,
        "mib_per_token": bytes_per_token / 2**20,
        "stall_fraction": decode["stall_ns"] / decode["wall_ns"],
        "drive_gb_per_s": drive * 1e-9,
        "drive_bound_tok_per_s": drive / bytes_per_token if bytes_per_token else None,
        "peak_rss_mib": stats["memory"]["peak_resident_set_bytes"] / 2**20,
    }


def median(values):
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--moraine", default="build/release/moraine")
    parser.add_argument("--budgets", default="100%,50%,25%,10%")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    args, extra = parser.parse_known_args()

    header = f"{'budget':>8} {'tok/s':>9} {'hits':>7} {'MiB/token':>10} {'stall':>7} {'GB/s':>6} {'RSS MiB':>8}"
    print(header, file=sys.stderr)
    budgets = args.budgets.split(",")
    figures = {budget: [] for budget in budgets}
    for _ in range(args.runs):  # in turn, so that a slow minute hits all budgets alike
        for budget in budgets:
            figures[budget].append(run(args.moraine, args.store, budget, args.tokens, extra))
    for budget in budgets:
        row = {key: median([f[key] for f in figures[budget]]) for key in figures[budget][0]}
        print(f"{budget:>8} {row['tok_per_s']:9.1f} {row['hit_rate']:7.1%} {row['mib_per_token']:10.3f} "
              f"{row['stall_fraction']:7.1%} {row['drive_gb_per_s']:6.2f} {row['peak_rss_mib']:8.1f}",
              file=sys.stderr)
        print(json.dumps({"bench": "budget_sweep", "store": args.store, "budget": budget,
                          "tokens": args.tokens, "runs": args.runs, **row}))


if __name__ == "__main__":
    main()
