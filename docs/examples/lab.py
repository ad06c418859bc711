"""A lab in one process: an origin, a proxy and a client, on ports that the kernel chooses.

Run it with ``python docs/examples/lab.py``; it prints the answer, and the access record of the request.
"""

from http.client import HTTPConnection

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from proxyd import Config, Proxy
from proxyd.ledger.formats import encode_json
from proxyd.testing import RecordList

CONFIG = """
[listener:lab]
endpoint = tcp:0:interface=127.0.0.1
accept = forward connect

[rule:origin]
action = allow
destinations = 127.0.0.1
ports = *
special_addresses = yes
"""


def fetch(port, url):
    """Any client will do: this one blocks, so it has a thread."""
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", url)
    response = connection.getresponse()
    return response.status, response.read().decode()


async def main(reactor):
    root = Resource()
    root.putChild(b"hello", Data(b"hello from the origin", "text/plain"))
    origin = reactor.listenTCP(0, Site(root), interface="127.0.0.1")

    records = RecordList()
    proxy = Proxy(reactor, Config.from_string(CONFIG), access_log=records)
    addresses = await proxy.listen()

    url = f"http://127.0.0.1:{origin.getHost().port}/hello"
    status, body = await deferToThread(fetch, addresses["lab"].port, url)
    print(status, body)

    await proxy.stopService()
    await origin.stopListening()
    for record in records:
        print(encode_json(record).decode(), end="")


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
