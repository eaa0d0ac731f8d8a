"""The server under load: starts it, asks it, and looks at it from outside."""
import asyncio
import json
import os
import re
import signal
import subprocess
import tempfile
import threading

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
READY_SECONDS = 120


class Server:
    """`moraine serve` as a user runs it, on a free port."""

    def __init__(self, moraine, store, *options):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [moraine, "serve", store, "--port", "0", *options],
            stdout=subprocess.PIPE, stderr=self.log, text=True)
        killer = threading.Timer(READY_SECONDS, self.process.kill)
        killer.start()
        line = self.process.stdout.readline()
        killer.cancel()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            raise RuntimeError(f"the server did not start: {line}{self.log_text()}")
        self.port = int(found.group(1))

    def log_text(self):
        self.log.seek(0)
        return self.log.read()

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
        finally:
            self.process.stdout.close()

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class Closed(Exception):
    """The server has closed the connection before the answer's end."""


class Client:
    """One HTTP/1.1 connection. What is sent is exactly what the caller says."""

    def __init__(self, port, receive_buffer=None):
        self.port = port
        self.receive_buffer = receive_buffer
        self.reader = self.writer = None

    async def connect(self):
        import socket
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if self.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        self.reader, self.writer = await asyncio.open_connection(
            sock=sock, limit=self.receive_buffer or 2**16)

    async def send(self, data):
        if self.writer is None:
            await self.connect()
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError as error:
            raise Closed(str(error)) from error

    async def request(self, method, path, body=None, fields=""):
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{fields}"
        if body is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
        await self.send(head.encode() + b"\r\n" + data)

    async def _line(self):
        try:
            line = await self.reader.readuntil(b"\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Closed(str(error)) from error
        return line.decode("latin-1").rstrip("\r\n")

    async def _exactly(self, count):
        try:
            return await self.reader.readexactly(count)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Closed(str(error)) from error

    async def head(self):
        """Status and fields."""
        status = int((await self._line()).split()[1])
        fields = {}
        while line := await self._line():
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        return status, fields

    async def body(self, fields):
        if fields.get("transfer-encoding") == "chunked":
            return b"".join([chunk async for chunk in self.chunks()])
        return await self._exactly(int(fields.get("content-length", 0)))

    async def chunks(self):
        while count := int(await self._line(), 16):
            yield (await self._exactly(count + 2))[:-2]
        await self._line()

    async def events(self):
        """The data of each event of a stream, [DONE] included."""
        pending = b""
        async for chunk in self.chunks():
            pending += chunk
            while b"\n\n" in pending:
                event, pending = pending.split(b"\n\n", 1)
                if event.startswith(b"data: "):
                    yield event[len(b"data: "):]
        if pending:
            raise AssertionError(f"a stream ends within an event: {pending!r}")

    async def read_to_end(self):
        """What the server sends until it closes."""
        try:
            return await self.reader.read()
        except OSError:
            return b""

    def abort(self):
        """RST, as of a process that was killed."""
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


async def get_json(port, path):
    client = Client(port)
    try:
        await client.request("GET", path, fields="connection: close\r\n")
        status, fields = await client.head()
        if status != 200:
            raise AssertionError(f"GET {path}: {status}")
        return json.loads(await client.body(fields))
    finally:
        client.close()
