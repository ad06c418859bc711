"""Tests of a policy, without a socket: run them with ``python -m unittest docs/examples/policy_test.py``."""

import unittest

from proxyd.testing import Ending, Faults, Lab, Reach, RebindingResolver

CONFIG = """
[listener:http]
endpoint = tcp:8080
accept = forward connect

[rule:log-service]
action = allow
destinations = .log.example.com
"""
CONNECT = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n"


class PolicyTests(unittest.TestCase):
    def test_logs_go_out(self):
        with Lab(CONFIG) as lab:
            origin = lab.origin("project.log.example.com", 443)
            client = lab.connect("http", address="192.0.2.7")

            client.send(CONNECT % (b"project.log.example.com:443", b"project.log.example.com:443"))
            self.assertEqual(client.received(), b"HTTP/1.1 200 Connection Established\r\n\r\n")
            client.send(b"to the origin")
            self.assertEqual(origin.received(), b"to the origin")
            origin.reply(b"to the client")
            self.assertEqual(client.received(), b"to the client")

            client.close()
            origin.close()
            lab.records.expect({"decision": "allow", "rule": "log-service", "client": "192.0.2.7", "error": None})

    def test_nothing_else_does(self):
        with Lab(CONFIG) as lab:
            client = lab.connect("http")
            client.send(CONNECT % (b"elsewhere.example.net:443", b"elsewhere.example.net:443"))
            self.assertTrue(client.received().startswith(b"HTTP/1.1 403 Forbidden\r\n"))
            lab.records.expect({"decision": "deny", "rule": None, "error": "http_request_denied"})
            self.assertEqual(lab.resolver.asked, [])

    def test_rebinding(self):
        resolver = RebindingResolver()
        with Lab(CONFIG, resolver=resolver) as lab:
            resolver.rebind("evil.log.example.com", ["93.184.216.34"], ["169.254.169.254"])
            lab.origin("93.184.216.34", 443)
            for _ in range(2):
                client = lab.connect("http")
                client.send(CONNECT % (b"evil.log.example.com:443", b"evil.log.example.com:443"))
            lab.records.expect({"decision": "deny", "error": "destination_ip_prohibited"})
            self.assertEqual([str(flow.address) for flow in lab.flows], ["93.184.216.34"])

    def test_an_answer_that_breaks_off(self):
        with Lab(CONFIG) as lab:
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)
            lab.origin("project.log.example.com", 80, answer=answer, faults=Faults(delay=0.05, reset_at=100))
            client = lab.connect("http")
            client.send(b"GET http://project.log.example.com/ HTTP/1.1\r\nHost: project.log.example.com\r\n\r\n")
            lab.advance(1)
            self.assertIs(client.ending, Ending.RESET)
            lab.records.expect({"status": 200, "error": "http_response_incomplete", "closed_by": "origin"})

    def test_a_silent_origin(self):
        with Lab(CONFIG) as lab:
            lab.origin("project.log.example.com", 443).reach = Reach.SILENT
            client = lab.connect("http")
            client.send(CONNECT % (b"project.log.example.com:443", b"project.log.example.com:443"))
            lab.advance(10)
            self.assertTrue(client.received().startswith(b"HTTP/1.1 504 Gateway Timeout\r\n"))
            lab.records.expect({"error": "connection_timeout", "duration": 10.0})


if __name__ == "__main__":
    unittest.main()
