"""What a prompt costs before its answer: computed, from the prefix cache in memory, and from disk after a restart.

    python3 bench/prefix_cache.py build/release/moraine STORE --tokens 1984 [--directory DIR] [options of serve]

Prompts of random tokens, one at a time, each of one answered token; the time is a client's, HTTP included. One
JSON line: medians in milliseconds, what of each prompt was found, and bytes of keys and values a token.
"""
import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time


class Server:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.port = int(re.search(r"127\.0\.0\.1:(\d+)", line).group(1))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def ask(self, prompt):
        """Milliseconds, and tokens that were found."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        body = json.dumps({"prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True})
        connection.connect()
        begin = time.perf_counter()
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        took = 1e3 * (time.perf_counter() - begin)
        connection.close()
        return took, answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moraine")
    parser.add_argument("store")
    parser.add_argument("--tokens", type=int, default=1984)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="on the drive to be measured (default: a temporary one)")
    args, serve = parser.parse_known_args()
    rng = random.Random(1)
    prompts = [[rng.randrange(4000) for _ in range(args.tokens)] for _ in range(args.rounds + 1)]
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        command = [args.moraine, "serve", args.store, "--port", "0", "--parallel", "1", "--max-context",
                   str(args.tokens + 64), "--prefix-cache-dir", directory, *serve]
        times = {"computed": [], "memory": [], "disk": []}
        found = {}
        server = Server(command)
        for prompt in prompts:  # the pool holds one
            for kind in ("computed", "memory"):
                took, found[kind] = server.ask(prompt)
                times[kind].append(took)
            time.sleep(1)  # for what is still to be written
        server.stop()
        kept = args.tokens // 64 * 64 * len(prompts)
        size = sum(os.path.getsize(os.path.join(directory, name)) for name in os.listdir(directory))
        server = Server(command)
        for prompt in prompts:
            took, found["disk"] = server.ask(prompt)
            times["disk"].append(took)
        server.stop()
    # The first of each also loads and warms what all use.
    report = {"tokens": args.tokens, "rounds": args.rounds, "load_average": os.getloadavg()[0],
              **{f"{kind}_ms": round(statistics.median(t[1:]), 1) for kind, t in times.items()},
              **{f"{kind}_found": count for kind, count in found.items()},
              "bytes_a_token": round(size / kept)}
    report["disk_times_faster"] = round(report["computed_ms"] / report["disk_ms"], 1)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
