"""moraine serve under a service manager: sockets that are handed over, notifications, draining.

Usage: service_test.py MORAINE CHECKOUT
"""
import http.client
import json
import os
import signal
import socket
import subprocess
import unittest

from moraine_command import FAILED, MORAINE, CommandTestCase


class ServiceTest(CommandTestCase):
    def start(self, listening, environment=(), **options):
        """A server whose descriptor 3 is `listening`."""
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = self.path(str(id(self)))  # short, as addresses must be
        notify.bind(path)
        notify.settimeout(60)
        self.addCleanup(notify.close)
        # The shell's process id stays, so that LISTEN_PID is right.
        command = 'exec 3<&"$FD" && export LISTEN_PID=$$ && exec "$@"'
        server = subprocess.Popen(
            ["bash", "-c", command, "serve", MORAINE, "serve", self.store, "--ram-budget", "25%"],
            env={**os.environ, "FD": str(listening.fileno()), "LISTEN_FDS": "1", "NOTIFY_SOCKET": path,
                 **dict(environment)},
            pass_fds=[listening.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(server.stderr.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        return server, notify

    def test_it_serves_the_socket_says_when_it_is_ready_and_lets_requests_finish(self):
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server, notify = self.start(listening)
        listening.close()
        states = [notify.recv(4096).decode()]
        while not states[-1].startswith("READY=1"):
            states.append(notify.recv(4096).decode())
        self.assertEqual(states[0], "STATUS=loading the model")
        self.assertIn(f"http://127.0.0.1:{port}", states[-1])

        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": "Once", "max_tokens": 600, "ignore_eos": True, "stream": True}),
            {"content-type": "application/json"})
        response = connection.getresponse()
        self.assertTrue(response.readline().startswith(b"data: "))
        server.send_signal(signal.SIGTERM)
        self.assertTrue(notify.recv(4096).decode().startswith("STOPPING=1"))
        rest = response.read().decode()
        self.assertIn('"finish_reason":"length"', rest)
        self.assertTrue(rest.endswith("data: [DONE]\n\n"))
        connection.close()
        self.assertEqual(server.wait(60), 0)

    def test_a_descriptor_that_is_no_listening_socket_is_refused(self):
        other = socket.socket(socket.AF_INET, socket.SOCK_STREAM)  # does not listen
        self.addCleanup(other.close)
        server, _ = self.start(other)
        self.assertEqual(server.wait(60), FAILED)
        self.assertIn("LISTEN_FDS: expected a listening TCP socket", server.stderr.read())

    def test_another_processs_socket_is_left_alone(self):
        # LISTEN_PID says whose it is; 1 is never us.
        result = subprocess.run([MORAINE, "serve", "/absent"], capture_output=True, text=True, timeout=60,
                                env={**os.environ, "LISTEN_FDS": "7", "LISTEN_PID": "1"})
        self.assertEqual(result.returncode, FAILED)
        self.assertIn("/absent", result.stderr)


if __name__ == "__main__":
    unittest.main()
