"""Clients that behave, and clients that do not."""
import asyncio
import json
import socket
import time

from load_requests import Answer, ask_whole
from load_server import Client, Closed, get_json

# The server's own limits (HttpServerOptions), and what a loaded machine may add.
HEADER_SECONDS, BODY_SECONDS, SLACK_SECONDS = 10, 60, 8


class Tally:
    """What has happened. A violation is kept, and ends the run."""

    def __init__(self):
        self.counts = {}
        self.gaps = []         # seconds between two tokens of one stream
        self.first_tokens = []  # seconds from request to first token
        self.tokens = 0
        self.violation = None

    def count(self, what, by=1):
        self.counts[what] = self.counts.get(what, 0) + by


class Load:
    """What the clients share."""

    def __init__(self, port, cases, rng, tally):
        self.port, self.cases, self.rng, self.tally = port, cases, rng, tally
        self.stopping = asyncio.Event()

    async def pause(self, seconds):
        """Until then, or until the run ends."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            pass


# --- Streams ----------------------------------------------------------------------------------------


async def stream_worker(load):
    """One request after the other, each compared with what it is alone."""
    client = Client(load.port)
    while not load.stopping.is_set():
        case = load.rng.choice(load.cases)
        kind = load.rng.random()
        if kind < 0.55:
            client = await read_stream(load, client, case)
        elif kind < 0.65:
            client = await read_whole(load, client, case, 1 + (load.rng.random() < 0.3))
        elif kind < 0.88:
            await abandon_stream(load, case)
        else:
            await read_slowly(load, case)
    client.close()


async def begin_stream(load, client, case):
    """False: the queue is full, and the body has been read."""
    await client.request("POST", case.path, case.body | {"stream": True})
    status, fields = await client.head()
    if status == 200:
        return True
    body = await client.body(fields)
    if status != 429:
        raise AssertionError(f"{case.path}: {status} {body!r}")
    load.tally.count("queue_full")
    await load.pause(0.2)
    return False


def take(answer, data, case, tally):
    """True if the event has a token."""
    chunk = json.loads(data)
    if "error" in chunk:
        raise AssertionError(f"a stream ends in an error: {chunk}")
    before = len(answer.tokens)
    for choice in chunk["choices"]:
        answer.add(choice, case.is_chat)
    tally.tokens += len(answer.tokens) - before
    return len(answer.tokens) > before


async def read_stream(load, client, case):
    """At the speed that it comes. The connection is kept for the next request."""
    asked = time.monotonic()
    if not await begin_stream(load, client, case):
        return client
    answer, last, done = Answer(), None, False
    async for data in client.events():
        if data == b"[DONE]":
            done = True
        elif take(answer, data, case, load.tally):
            now = time.monotonic()
            (load.tally.first_tokens if last is None else load.tally.gaps).append(now - (last or asked))
            last = now
    if not done:
        raise AssertionError("a stream ends without [DONE]")
    answer.check(case.alone, True, f"stream of {case.body}")
    load.tally.count("streams")
    return client


async def read_whole(load, client, case, choices):
    answers = await ask_whole(client, case, choices)
    if answers is None:
        load.tally.count("queue_full")
        await load.pause(0.2)
        return client
    for answer in answers:
        answer.check(case.alone, True, f"one of {choices} answers to {case.body}")
        load.tally.tokens += len(answer.tokens)
    load.tally.count("whole_answers", choices)
    return client


async def abandon_stream(load, case):
    """Gone at some event or before the first, by RST, by FIN, or by closing the sending half."""
    client = Client(load.port)
    how = load.rng.choice(["reset", "close", "half_close"])
    at = load.rng.choice([-1, 0, 1, 3, 10, 30])
    answer = Answer()
    if at < 0:
        await client.request("POST", case.path, case.body | {"stream": True})
        await load.pause(load.rng.random() * 0.3)
    elif await begin_stream(load, client, case):
        events = client.events()
        async for data in events:
            if at == 0 or data == b"[DONE]":
                break
            at -= 1
            take(answer, data, case, load.tally)
        await events.aclose()
        answer.check(case.alone, False, f"abandoned stream of {case.body}")
    if how == "half_close" and client.writer is not None:
        client.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        # The server takes it for gone and closes.
        await asyncio.wait_for(client.read_to_end(), HEADER_SECONDS + SLACK_SECONDS)
    (client.abort if how == "reset" else client.close)()
    load.tally.count(f"abandoned_by_{how}")


async def read_slowly(load, case):
    """A few bytes at a time through a small window; it gets the same."""
    client = Client(load.port, receive_buffer=4096)
    if await begin_stream(load, client, case):
        answer = Answer()
        async for data in client.events():
            if data != b"[DONE]":
                take(answer, data, case, load.tally)
            await load.pause(load.rng.random() * 0.1)
        answer.check(case.alone, True, f"slow stream of {case.body}")
        load.tally.count("slow_streams")
    client.close()


async def never_reads(load, case):
    """Asks for much and reads nothing: what the server does is cut it off, or finish into the buffers."""
    body = case.body | {"stream": True, "max_tokens": 400}
    body |= {"top_logprobs": 20} if case.is_chat else {"logprobs": 5}
    while not load.stopping.is_set():
        client = Client(load.port, receive_buffer=4096)
        await client.request("POST", case.path, body)
        await load.pause(40)
        client.abort()
        load.tally.count("never_read")


# --- Hostile ----------------------------------------------------------------------------------------

MALFORMED = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n", {400}),
    (b"GET\r\n\r\n", {400}),
    (b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n", {400, 505}),
    (b"GET /health HTTP/1.1\r\nhost: localhost\r\nbroken field\r\n\r\n", {400}),
    (b"GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n", {403, 421}),
    (b"GET /absent HTTP/1.1\r\nhost: localhost\r\n\r\n", {404}),
    (b"DELETE /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n", {405}),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
     b"content-length: 9\r\n\r\n{\"prompt\"", {400}),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
     b"content-length: 3\r\ncontent-length: 4\r\n\r\n{}  ", {400}),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
     b"transfer-encoding: chunked\r\n\r\nzz\r\n", {400}),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
     b"content-length: 70000000\r\n\r\n", {413}),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
     b"content-length: 99999999999999999999999\r\n\r\n", {400, 413}),
    (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 70_000 + b"\r\n\r\n", {431}),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
     b"content-length: 2\r\n\r\n{}", {415}),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
     b"content-length: 40000\r\n\r\n" + b"[" * 40_000, {400}),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
     b"content-length: 15\r\n\r\n{\"prompt\":[-1]}", {400}),
]


async def sends_nonsense(load):
    """Each is answered with its status, or the connection ends; nothing else happens."""
    while not load.stopping.is_set():
        data, statuses = load.rng.choice(MALFORMED)
        client = Client(load.port)
        try:
            await client.send(data)
            status, _ = await asyncio.wait_for(client.head(), HEADER_SECONDS + SLACK_SECONDS)
            if status not in statuses:
                raise AssertionError(f"{data[:80]!r}: {status}, expected one of {statuses}")
        except Closed:
            pass
        client.abort()
        load.tally.count("malformed")
        await load.pause(0.05 + load.rng.random() * 0.2)


async def sends_too_much(load):
    """A body of more than 64 MiB of unknown length: refused at the limit, and soon not even thrown away."""
    while not load.stopping.is_set():
        client = Client(load.port)
        begun = time.monotonic()
        try:
            await client.send(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
                              b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            while not load.stopping.is_set():
                await client.send(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
                if time.monotonic() - begun > HEADER_SECONDS + SLACK_SECONDS:
                    raise AssertionError("a body without an end is still being read")
        except Closed:
            load.tally.count("oversized_cut_off")
        client.abort()
        await load.pause(15)


async def sends_a_byte_now_and_then(load, data, limit_seconds, what):
    """Cut off when the limit for the whole is over, though there is always another byte."""
    while not load.stopping.is_set():
        client = Client(load.port)
        begun = time.monotonic()
        try:
            await client.send(data)
            while not load.stopping.is_set():
                await load.pause(0.7)
                await client.send(b"x")
                if time.monotonic() - begun > limit_seconds + SLACK_SECONDS:
                    raise AssertionError(f"{what}: not cut off after {limit_seconds} s")
        except Closed:
            load.tally.count(what)
        client.abort()


def slow_heads(load):
    return sends_a_byte_now_and_then(load, b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: ",
                                     HEADER_SECONDS, "slow_heads_cut_off")


def slow_bodies(load):
    return sends_a_byte_now_and_then(
        load, b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: 100000\r\n\r\n{\"prompt\": \"", BODY_SECONDS, "slow_bodies_cut_off")


async def stays_idle(load, ready):
    """Connects and says nothing, or has asked once; comes back when it is closed."""
    first = True
    while not load.stopping.is_set():
        client = Client(load.port)
        await client.connect()
        if load.rng.random() < 0.5:
            await client.request("GET", "/health")
            status, fields = await client.head()
            if status != 200:
                raise AssertionError(f"/health: {status}")
            await client.body(fields)
        if first:
            ready.release()
            first = False
        end = asyncio.ensure_future(client.read_to_end())
        stop = asyncio.ensure_future(load.stopping.wait())
        await asyncio.wait([end, stop], return_when=asyncio.FIRST_COMPLETED)
        if not load.stopping.is_set():
            load.tally.count("idle_closed")
        for task in (end, stop):
            task.cancel()
        client.close()


async def watches(load):
    """What a dashboard asks; it must be answered whatever else goes on."""
    while not load.stopping.is_set():
        for path in ("/stats?layers=0", "/slots", "/props", "/v1/models"):
            await asyncio.wait_for(get_json(load.port, path), HEADER_SECONDS + SLACK_SECONDS)
            load.tally.count("watched")
        await load.pause(0.5)
