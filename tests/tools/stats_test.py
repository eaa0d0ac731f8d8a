"""moraine stats beside a server and of a stopped run.

Usage: stats_test.py MORAINE CHECKOUT
"""
import http.client
import json
import re
import subprocess
import unittest

from moraine_command import CHECKOUT, DEMO, FAILED, MORAINE, OK, USAGE, CommandTestCase


class StatsTest(CommandTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = subprocess.Popen([MORAINE, "serve", cls.store, "--port", "0", "--ram-budget", "25%"],
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        cls.url = re.search(r"at (http://127.0.0.1:\d+)", cls.server.stdout.readline())[1]

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        cls.server.wait()
        cls.server.stdout.close()
        super().tearDownClass()

    def generate(self, tokens):
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(
            {"prompt": "What is 247 + 6?", "max_tokens": tokens, "ignore_eos": True}),
            {"content-type": "application/json"})
        response = connection.getresponse()
        self.assertEqual(response.status, 200, response.read())
        connection.close()

    def reports(self, *arguments):
        result = self.expect(OK, [], "stats", "--url", self.url, "--json", *arguments)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_the_first_report_is_since_the_start_and_the_others_are_differences(self):
        self.generate(30)
        first, second, third = self.reports("0.1", "3")
        self.assertTrue(first["report"]["since_start"])
        self.assertGreaterEqual(first["decode"]["tokens"], 29)
        for later in (second, third):
            self.assertFalse(later["report"]["since_start"])
            self.assertEqual(later["decode"]["tokens"], 0)
            self.assertIsNone(later["report"]["decode"])
            self.assertGreaterEqual(later["report"]["interval_ns"], 50_000_000)
        self.assertEqual(first["expert_count"], second["expert_count"])
        self.assertEqual(first["layers"], [])
        only = self.reports("0.1", "1", "-y", "-x")
        self.assertEqual(len(only), 1)
        self.assertFalse(only[0]["report"]["since_start"])
        self.assertEqual(len(only[0]["layers"]), 8)

    def test_parts_sum_to_the_time_and_shares_are_shares(self):
        self.generate(30)
        report = self.reports()[0]["report"]
        for phase in ("prefill", "decode"):
            self.assertAlmostEqual(sum(report[phase]["parts_ms_per_token"].values()),
                                   report[phase]["ms_per_token"], places=9)
            self.assertLessEqual(report[phase]["hit_share"], 1)
        self.assertGreater(report["drive"]["gb_per_s"], 0)
        self.assertGreater(report["drive"]["read_p99_ms"], 0)
        self.assertIsNone(report["drive"]["share_of_measured"])  # bench io was not run
        self.assertEqual([p["cache"] for p in report["projection"]], [0.5, 1, 1.5, 2])

    def test_text_has_the_phases_and_a_line_a_layer(self):
        self.generate(5)
        text = self.expect(OK, [], "stats", "--url", self.url, "-x").stdout
        for line in (r"phase +tok/s", r"decode +[\d.]+ ", r"drive +GB/s", r"decode is bound by ",
                     r"layer +resident", r" +7 +\d+/32 "):
            self.assertRegex(text, re.compile(line, re.MULTILINE))

    def test_of_a_stopped_run_more_cache_is_projected_to_be_no_slower(self):
        store = self.path("stopped")
        self.expect(OK, [], "import", DEMO, store, "--quiet")
        self.expect(FAILED, ["no statistics yet"], "stats", "--store", store)
        self.expect(OK, [], "run", store, "What is 247 + 6? Tell me a story.", "--ram-budget", "25%",
                    "--max-tokens", "100", "--quiet")
        result = self.expect(OK, [], "stats", "--store", store, "--json")
        speeds = [p["decode_tokens_per_s"] for p in json.loads(result.stdout)["report"]["projection"]]
        self.assertEqual(speeds, sorted(speeds))
        self.assertGreater(speeds[3], speeds[0])

    def test_metrics_have_what_the_dashboard_shows(self):
        self.generate(5)
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        connection.close()
        with open(f"{CHECKOUT}/contrib/grafana/moraine.json") as file:
            dashboard = json.load(file)
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        self.assertGreater(len(expressions), 20)
        for expression in expressions:
            for name, labels in re.findall(r'(moraine_[a-z_]+)\{instance=~"\$instance",?([^}]*)\}', expression):
                samples = re.findall(rf"^{name}(?:\{{(.*)\}})? [\d.e+-]+$", metrics, re.MULTILINE)
                self.assertTrue(samples, f"{name} is not in /metrics")
                for label, pattern in re.findall(r'(\w+)=~?"([^"]*)"', labels):
                    found = {dict(re.findall(r'(\w+)="([^"]*)"', sample)).get(label) for sample in samples}
                    self.assertTrue(any(value and re.fullmatch(pattern, value) for value in found),
                                    f"{name}: no {label} is {pattern}, found {found}")
            for label in re.findall(r"by \((\w+)\)", expression):
                self.assertRegex(metrics, rf'[{{,]{label}="')
        for name in ("time_to_first_token", "time_between_tokens", "generation"):
            self.assertRegex(metrics, rf"moraine_{name}_seconds_count [1-9]")

    def test_what_does_not_go_together_is_refused(self):
        self.expect(USAGE, ["--store"], "stats", "5", "--store", self.store)
        self.expect(USAGE, ["INTERVAL"], "stats", "0")
        self.expect(USAGE, ["COUNT"], "stats", "1", "0")
        self.expect(FAILED, ["127.0.0.1:1"], "stats", "--url", "http://127.0.0.1:1")


if __name__ == "__main__":
    unittest.main()
