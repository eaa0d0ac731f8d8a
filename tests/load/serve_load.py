"""A server under load, from outside: `moraine serve` over the demo model, and clients of every kind.

    python3 tests/load/serve_load.py build/release/moraine . --seconds 180 --seed 7

64 workers ask for greedy answers as streams and whole, one after the other; some go away at some token, some
before the first, some read a few bytes at a time. Meanwhile 1,000 connections stay idle, and others send
nonsense, too much, or a byte now and then. What it checks:

  - every answer, its tokens and their printed log probabilities, is what the same request gets alone from a
    server that computes one at a time; what was abandoned is the beginning of that
  - no answer is refused but for a full queue, no stream ends but by its end, no request fails
  - what is malformed or too large is refused with its status, what is slow is cut off at the server's limits
  - between two tokens of a stream is less than --p99-ms at the 99th percentile
  - resident set and descriptors do not grow once the first quarter of the time is over
  - at the end nothing runs, waits or holds memory; with the idle connections still there the server uses less
    than 1 % of a CPU; and it ends at SIGTERM with 0

A line every 10 s, one JSON line at the end; exit code 0 if all of it held. The seed gives the same requests, not
the same run.
"""
import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import load_clients
from load_requests import Case, ask_whole, make_cases
from load_server import Client, Server, get_json

STREAMS, IDLE = 64, 1000
SLOW_HEADS, SLOW_BODIES, NEVER_READ = 20, 5, 4
# 8 of the 64 run at a time; the rest waits, which is no 429.
PARALLEL, QUEUE, CONTEXT = 8, 128, 8192
# Freed memory that the allocator keeps in pieces moves up and down; the soak of the engine allows as much.
RESIDENT_BOUND_BYTES = 16 << 20
# A connection that has sent nothing: socket, coroutine and a small buffer. Measured: docs/serving.md.
IDLE_BOUND_BYTES = 16 << 10
IDLE_CPU_PERCENT, IDLE_CPU_SECONDS = 1.0, 5
REST_SECONDS = 90  # for what still runs or waits when the time is over


class Violation(Exception):
    pass


def check(holds, what):
    if not holds:
        raise Violation(what)


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("moraine")
    parser.add_argument("checkout")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=24, help="different requests")
    parser.add_argument("--ram-budget", default="60%", help="of the server")
    parser.add_argument("--p99-ms", type=float, default=1000,
                        help="a step is 8 tokens and a quarter of a prompt's chunk: tens of milliseconds "
                             "for the demo model; the rest is for a machine that does other things, too")
    return parser.parse_args()


async def answers_alone(server, cases):
    client = Client(server.port)
    for case in cases:
        answers = await ask_whole(client, case)
        case.alone = answers[0]
        check(case.alone.finish == "length" and case.alone.tokens, f"{case.body} alone: {case.alone.finish}")
    client.close()


async def touch_all_memory(server, rng):
    """Prompts that fill the KV cache, whose memory is committed as it is first used."""
    client = Client(server.port)
    for _ in range(CONTEXT // 1900 + 1):
        case = Case("/v1/completions", {"prompt": [rng.randrange(4000) for _ in range(1900)],
                                        "max_tokens": 1, "logprobs": 1})
        await ask_whole(client, case)
    client.close()


class Samples:
    """The process at intervals."""

    def __init__(self, server, begun, seconds):
        self.server, self.begun, self.seconds, self.list = server, begun, seconds, []

    def take(self):
        age = (time.monotonic() - self.begun) / self.seconds
        self.list.append((age, self.server.resident_bytes(), self.server.descriptors()))

    def between(self, begin, end, field):
        """The median: a body of 64 MiB that is just being read is no growth."""
        return statistics.median_low([s[field] for s in self.list if begin <= s[0] < end] or [0])


async def sample_and_report(load, samples, tally):
    reported = time.monotonic()
    while not load.stopping.is_set():
        await load.pause(0.5)
        samples.take()
        if time.monotonic() - reported < 10:
            continue
        reported = time.monotonic()
        _, resident, descriptors = samples.list[-1]
        print(f"{reported - samples.begun:6.0f} s  {tally.tokens} tokens  "
              f"{' '.join(f'{k} {v}' for k, v in sorted(tally.counts.items()))}  "
              f"{resident >> 20} MiB  {descriptors} descriptors", flush=True)


async def open_idle(load, stack):
    """1,000 of them; the tasks."""
    ready = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(load_clients.stays_idle(load, ready)) for _ in range(IDLE)]
    for _ in range(IDLE):
        await asyncio.wait_for(ready.acquire(), 60)
    stack.callback(lambda: [task.cancel() for task in tasks])
    return tasks


def client_tasks(load):
    clients = [load_clients.stream_worker(load) for _ in range(STREAMS)]
    clients += [load_clients.slow_heads(load) for _ in range(SLOW_HEADS)]
    clients += [load_clients.slow_bodies(load) for _ in range(SLOW_BODIES)]
    clients += [load_clients.never_reads(load, load.rng.choice(load.cases)) for _ in range(NEVER_READ)]
    clients += [load_clients.sends_nonsense(load), load_clients.sends_nonsense(load),
                load_clients.sends_too_much(load), load_clients.watches(load)]
    return [asyncio.create_task(client) for client in clients]


async def run_clients(args, load, samples, tally):
    tasks = client_tasks(load)
    tasks.append(asyncio.create_task(sample_and_report(load, samples, tally)))
    done, running = await asyncio.wait(tasks, timeout=args.seconds, return_when=asyncio.FIRST_COMPLETED)
    load.stopping.set()
    if not any(task.exception() for task in done):
        done, running = await asyncio.wait(tasks, timeout=REST_SECONDS)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    for task in done:
        if task.exception():
            raise task.exception()
    check(not running, f"{len(running)} clients were not done {REST_SECONDS} s after the end")


async def wait_for_rest(server):
    """Nothing runs or waits any more; the statistics then."""
    end = time.monotonic() + REST_SECONDS
    while True:
        stats = await get_json(server.port, "/stats?layers=0")
        slots = await get_json(server.port, "/slots")
        if not slots and stats["running"] == 0 and stats["queue_length"] == 0:
            return stats
        check(time.monotonic() < end, f"still there: {slots}, {stats['running']} running")
        await asyncio.sleep(0.1)


async def measure_idle(server, report):
    """CPU time with nothing but idle connections."""
    await asyncio.sleep(1)
    begun, used = time.monotonic(), server.cpu_seconds()
    await asyncio.sleep(IDLE_CPU_SECONDS)
    share = 100 * (server.cpu_seconds() - used) / (time.monotonic() - begun)
    report["idle_cpu_percent"] = round(share, 2)
    check(share < IDLE_CPU_PERCENT, f"{share:.1f} % of a CPU with nothing to do")


async def load_server(args, server, cases, report):
    tally, rng = load_clients.Tally(), random.Random(args.seed)
    await touch_all_memory(server, rng)
    for _ in range(2):  # what is loaded at the first use, in the server and here
        await get_json(server.port, "/stats")
    empty_resident, empty_descriptors = server.resident_bytes(), server.descriptors()
    async with contextlib.AsyncExitStack() as stack:
        idle = load_clients.Load(server.port, cases, rng, tally)
        idle_tasks = await open_idle(idle, stack)
        each = max(0, server.resident_bytes() - empty_resident) / IDLE
        report["idle_connection_bytes"] = round(each)
        check(server.descriptors() >= empty_descriptors + IDLE, "idle connections are missing")
        check(each < IDLE_BOUND_BYTES, f"{each:.0f} bytes for an idle connection")

        load = load_clients.Load(server.port, cases, rng, tally)
        begun = time.monotonic()
        samples = Samples(server, begun, args.seconds)
        await run_clients(args, load, samples, tally)
        report |= {"tokens": tally.tokens, **dict(sorted(tally.counts.items())),
                   "tokens_per_second": round(tally.tokens / (time.monotonic() - begun), 1)}
        for name, values in (("gap", tally.gaps), ("first_token", tally.first_tokens)):
            for share in (0.5, 0.99, 1.0):
                label = "max" if share == 1 else f"p{round(100 * share)}"
                report[f"{name}_{label}_ms"] = round(1000 * percentile(values, share), 1)
        stats = await wait_for_rest(server)
        check_stats(stats, tally, report)
        await measure_idle(server, report)
        idle.stopping.set()
        await asyncio.gather(*idle_tasks)
    await asyncio.sleep(1)
    report["descriptors_before"], report["descriptors_after"] = empty_descriptors, server.descriptors()
    check_samples(samples, report)
    check(report["gap_p99_ms"] < args.p99_ms, f"p99 between two tokens: {report['gap_p99_ms']} ms")


def check_stats(stats, tally, report):
    kv = stats["kv"]
    report |= {"requests": stats["requests"], "cancelled": stats["requests_cancelled"],
               "preempted": kv["preempted"], "reused_tokens": kv["reused_tokens"],
               "restored_tokens": kv["restored_tokens"]}
    # What the longest gaps were about, as the engine has seen them; those of the clients are theirs, too.
    steps = stats["steps"]
    cause, part = max(steps["parts"].items(), key=lambda item: item[1]["longest_ns"])
    report |= {"step_longest_ms": round(part["longest_ns"] / 1e6, 1), "step_longest_cause": cause,
               "step_longest_by_cause_ms": {name: round(p["longest_ns"] / 1e6, 1)
                                            for name, p in steps["parts"].items() if p["longest_ns"] > 0},
               "token_wait_longest_ms": round(steps["waits"]["longest_ns"] / 1e6, 1),
               "token_wait_preempted_longest_ms": round(steps["longest_preempted_ns"] / 1e6, 1)}
    check(part["longest_ns"] == steps["turns"]["longest_ns"], f"the longest step has no cause: {steps}")
    check(stats["requests_failed"] == 0, f"{stats['requests_failed']} requests failed")
    check(kv["held"] == 0, f"{kv['held']} blocks of keys and values are still held")
    check(kv["disk_failures"] == 0, f"{kv['disk_failures']} blocks failed on disk")
    whole = sum(tally.counts.get(kind, 0) for kind in ("streams", "slow_streams", "whole_answers"))
    finished = stats["requests"] - stats["requests_cancelled"]
    check(finished >= whole, f"{whole} answers came to their end, the server knows of {finished}")
    for kind in ("streams", "slow_streams", "whole_answers", "malformed", "abandoned_by_reset",
                 "abandoned_by_close", "abandoned_by_half_close", "slow_heads_cut_off",
                 "oversized_cut_off"):
        check(tally.counts.get(kind, 0) > 0, f"never happened: {kind}")


def check_samples(samples, report):
    early, late = samples.between(0.25, 0.6, 1), samples.between(0.6, 9, 1)
    report["resident_early"], report["resident_late"] = early, late
    check(late <= early + RESIDENT_BOUND_BYTES, f"the resident set grows: {early} to {late}")
    early, late = samples.between(0.25, 0.6, 2), samples.between(0.6, 9, 2)
    report["descriptors_early"], report["descriptors_late"] = early, late
    most = STREAMS + SLOW_HEADS + SLOW_BODIES + NEVER_READ + 8
    check(late <= early + most // 4, f"descriptors grow under load: {early} to {late}")
    before, after = report["descriptors_before"], report["descriptors_after"]
    check(after <= before + 2, f"descriptors: {before} before, {after} after")


async def main_async(args, report, scratch):
    store = os.path.join(scratch, "store")
    subprocess.run([args.moraine, "import", os.path.join(args.checkout, "models/demo"), store,
                    "--experts", "q8"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cases = make_cases(args.checkout, args.cases, args.seed)
    budget = ["--ram-budget", args.ram_budget]
    alone = Server(args.moraine, store, "--parallel", "1", *budget)
    try:
        await answers_alone(alone, cases)
    finally:
        alone.stop()
    server = Server(args.moraine, store, "--parallel", str(PARALLEL), "--queue", str(QUEUE),
                    "--prefix-cache-dir", os.path.join(scratch, "prefix-cache"),
                    "--prefix-cache-disk-budget", "48MiB", "--max-context", str(CONTEXT), *budget)
    try:
        await load_server(args, server, cases, report)
    except Exception:
        print(server.log_text()[-2000:], file=sys.stderr)
        raise
    finally:
        report["exit_code"] = server.stop()
    check(report["exit_code"] == 0, f"the server ended with {report['exit_code']}")


def main():
    args = options()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"serve_load.py --seconds {args.seconds:g} --seed {args.seed} --cases {args.cases}", flush=True)
    report = {"load": "serve", "seed": args.seed, "seconds": args.seconds, "cpus": os.cpu_count(),
              "load_average": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            asyncio.run(main_async(args, report, scratch))
            report["passed"] = True
        except Exception as error:  # whatever it is, the figures so far are printed
            report |= {"passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}
    print(json.dumps(report))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
