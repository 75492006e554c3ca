"""Both ends of the exchange of exchange.ts, in the three ways in which Python programs use sockets.
   peer.py STYLE server HOST PORT
   peer.py STYLE client HOST PORT FILE COUNT HOLD_S SIZE...
STYLE: blocking (one connection after another), threaded, asyncio."""
import asyncio
import hashlib
import json
import socket
import socketserver
import sys
import threading
import time

CHUNK = 65536
TIMEOUT_S = 60


def answer(payload):
    return hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def receive_all(connection):
    parts = []
    while part := connection.recv(CHUNK):
        parts.append(part)
    return b"".join(parts)


def serve(connection):
    with connection:
        connection.sendall(answer(receive_all(connection)))


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        serve(self.request)


class ThreadedServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 128


def blocking_server(host, port):
    with socket.create_server((host, port), backlog=128) as listener:
        while True:
            serve(listener.accept()[0])


def threaded_server(host, port):
    with ThreadedServer((host, port), Handler) as server:
        server.serve_forever()


async def asyncio_server(host, port):
    async def handle(reader, writer):
        writer.write(answer(await reader.read()))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, host, port, backlog=128) as server:
        await server.serve_forever()


def exchange(host, port, payload, hold_s):
    with socket.create_connection((host, port)) as connection:
        connection.settimeout(None)
        sender = threading.Thread(target=lambda: (connection.sendall(payload), time.sleep(hold_s), connection.shutdown(socket.SHUT_WR)))
        sender.start()
        received = receive_all(connection)
        sender.join()
        return received


async def asyncio_exchange(host, port, payload, hold_s):
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(payload)
    await writer.drain()
    await asyncio.sleep(hold_s)
    writer.write_eof()
    received = await reader.read()
    writer.close()
    return received


class Report:
    def __init__(self):
        self.received = {}
        self.lock = threading.Lock()

    def add(self, size, received):
        digest = hashlib.sha256(received).hexdigest()
        with self.lock:
            table = self.received.setdefault(str(size), {})
            table[digest] = table.get(digest, 0) + 1


def blocking_client(host, port, payload, count, hold_s, sizes, report):
    for size in sizes:
        for _ in range(count):
            report.add(size, exchange(host, port, payload[:size], hold_s))


def threaded_client(host, port, payload, count, hold_s, sizes, report):
    def run(size):
        try:
            report.add(size, exchange(host, port, payload[:size], hold_s))
        except Exception as error:  # told to the test, which compares
            report.add(size, repr(error).encode())

    for size in sizes:
        threads = [threading.Thread(target=run, args=(size,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


async def asyncio_client(host, port, payload, count, hold_s, sizes, report):
    for size in sizes:
        for received in await asyncio.gather(*[asyncio_exchange(host, port, payload[:size], hold_s) for _ in range(count)]):
            report.add(size, received)


def main():
    style, role, host, port, *rest = sys.argv[1:]
    if role == "server":
        result = {"blocking": blocking_server, "threaded": threaded_server, "asyncio": asyncio_server}[style](host, int(port))
        if style == "asyncio":
            asyncio.run(result)
        return
    path, count, hold_s, *sizes = rest
    with open(path, "rb") as file:
        payload = file.read()
    report = Report()
    threading.Timer(TIMEOUT_S, lambda: (print("time is up", file=sys.stderr, flush=True), __import__("os")._exit(3))).start()
    client = {"blocking": blocking_client, "threaded": threaded_client, "asyncio": asyncio_client}[style]
    result = client(host, int(port), payload, int(count), float(hold_s), [int(size) for size in sizes], report)
    if style == "asyncio":
        asyncio.run(result)
    print(json.dumps(report.received), flush=True)
    __import__("os")._exit(0)


main()
