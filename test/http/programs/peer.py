"""Python's HTTP programs, as peer.ts has Node's: `serve-asyncio PORT`, `serve-threads PORT` (blocking sockets),
`client|asyncio|rude BASE PLAN AT_ONCE KEEP`. `rude` goes away in the middle of each exchange and says nothing."""
import asyncio, hashlib, http.client, http.server, json, random, sys, threading
from urllib.parse import parse_qs

HEADERS = ["x-number", "x-path", "x-method", "x-body", "x-via"]


def repeated(unit, size):
    return (unit * (size // len(unit) + 1))[:size].encode()


def hash_of(data):
    return hashlib.sha256(data).hexdigest()[:16]


def answer(method, path, headers, body):
    """Status, headers, data or None, whether in chunks."""
    query = {name: values[0] for name, values in parse_qs(path.partition("?")[2]).items()}
    number, status = headers["x-number"], int(query["status"])
    said = [number, path, method, f"{len(body)} {hash_of(body)}", "envoy" if "x-forwarded-proto" in headers else "fast"]
    data = repeated(f"{number} {path} ", int(query["size"])) if status == 200 else None
    return status, list(zip(HEADERS, said)), data, query["answer"] == "chunked"


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


async def read_head(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    return head[0], {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}


async def read_body(reader, headers):
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while True:
        size = int((await reader.readline()).strip(), 16)
        body += (await reader.readexactly(size + 2))[:size]
        if size == 0:
            return body


async def serve_one(reader, writer):
    try:
        while True:
            first, headers = await read_head(reader)
            method, path, _ = first.split(" ")
            if headers.get("expect"):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            status, said, data, chunked = answer(method, path, headers, await read_body(reader, headers))
            head = f"HTTP/1.1 {status} Said\r\n" + "".join(f"{name}: {value}\r\n" for name, value in said)
            if data is not None:
                head += "transfer-encoding: chunked\r\n" if chunked else f"content-length: {len(data)}\r\n"
            writer.write(head.encode() + b"\r\n")
            if data is not None and method != "HEAD":
                if chunked:
                    for at in range(0, len(data), 7000):
                        writer.write(chunk(data[at : at + 7000]))
                    writer.write(b"0\r\n\r\n")
                else:
                    writer.write(data)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve_asyncio(port):
    server = await asyncio.start_server(serve_one, "0.0.0.0", port, limit=1 << 20)
    await server.serve_forever()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        if "chunked" in headers.get("transfer-encoding", ""):
            body = b""
            while size := int(self.rfile.readline().strip(), 16):
                body += self.rfile.read(size)
                self.rfile.read(2)
            self.rfile.readline()
        else:
            body = self.rfile.read(int(headers.get("content-length", 0)))
        status, said, data, chunked = answer(self.command, self.path, headers, body)
        self.send_response(status)
        for name, value in said:
            self.send_header(name, value)
        if data is not None:
            self.send_header(*(("transfer-encoding", "chunked") if chunked else ("content-length", str(len(data)))))
        self.end_headers()
        if data is not None and self.command != "HEAD":
            self.wfile.write((chunk(data) if data else b"") + b"0\r\n\r\n" if chunked else data)

    do_GET = do_POST = do_HEAD = do


def say(*report):
    sys.stdout.write(json.dumps(report) + "\n")  # at once, as threads do


def report(n, status, headers, body):
    say(n, status, *(headers.get(name) or "" for name in HEADERS), len(body), hash_of(body))


def pieces(body, size=16000):
    return [body[at : at + size] for at in range(0, len(body), size)]


def by_http_client(host, port, plan, lock, keep):
    connection = http.client.HTTPConnection(host, port)
    while True:
        with lock:
            if not plan:
                return
            item = plan.pop(0)
        body = repeated(f"body {item['n']} ", item["body"])
        headers = {"x-number": str(item["n"])} | ({} if keep else {"Connection": "close"})
        try:
            connection.request(item["method"], item["path"], iter(pieces(body)) if item["chunked"] else body if item["method"] == "POST" else None, headers, encode_chunked=item["chunked"])
            got = connection.getresponse()
            report(item["n"], got.status, got.headers, got.read())
        except Exception as error:
            say(item["n"], repr(error))
            connection.close()


def head_of(host, item, keep=True):
    head = f"{item['method']} {item['path']} HTTP/1.1\r\nHost: {host}\r\nx-number: {item['n']}\r\n" + ("" if keep else "Connection: close\r\n")
    if item["method"] == "POST":
        head += "Transfer-Encoding: chunked\r\n" if item["chunked"] else f"Content-Length: {item['body']}\r\n"
    return head.encode() + b"\r\n"


async def by_asyncio(host, port, plan, keep):
    reader = writer = None
    while plan:
        item = plan.pop(0)
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
            body = repeated(f"body {item['n']} ", item["body"])
            writer.write(head_of(host, item, keep))
            for piece in pieces(body, 5000):
                writer.write(chunk(piece) if item["chunked"] else piece)
                await asyncio.sleep(0)
            if item["chunked"]:
                writer.write(b"0\r\n\r\n")
            async with asyncio.timeout(15):
                first, headers = await read_head(reader)
                status = int(first.split(" ")[1])
                report(item["n"], status, headers, b"" if item["method"] == "HEAD" or status != 200 else await read_body(reader, headers))
            if headers.get("connection") == "close":
                writer.close()
                writer = None
        except Exception as error:
            say(item["n"], repr(error))
            if writer is not None:
                writer.close()
            writer = None


async def rude(host, port, plan):
    while plan:
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
        try:
            for item in (plan.pop(0) for _ in range(min(len(plan), random.randrange(1, 6)))):
                writer.write(head_of(host, item) + (b"" if item["chunked"] else repeated(f"body {item['n']} ", item["body"])))
                if item["chunked"]:
                    break
                _, headers = await read_head(reader)
                if item["method"] != "HEAD" and ("content-length" in headers or "transfer-encoding" in headers):
                    await read_body(reader, headers)
            if plan:
                # And one that is not waited for, or not even asked whole.
                item = plan.pop(0)
                whole = head_of(host, item) + repeated(f"body {item['n']} ", item["body"])
                writer.write(whole[: random.randrange(1, len(whole) + 1)])
                await asyncio.sleep(random.random() * 0.003)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.transport.abort() if random.random() < 0.5 else writer.close()


async def main_asyncio(host, port, plan, at_once, keep):
    await asyncio.gather(*(rude(host, port, plan) if sys.argv[1] == "rude" else by_asyncio(host, port, plan, keep) for _ in range(at_once)))


def main():
    what = sys.argv[1]
    if what == "serve-asyncio":
        asyncio.run(serve_asyncio(int(sys.argv[2])))
    elif what == "serve-threads":
        http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[2])), Handler).serve_forever()
    else:
        host, _, port = sys.argv[2].removeprefix("http://").partition(":")
        with open(sys.argv[3]) as file:
            plan = json.load(file)
        at_once, keep = int(sys.argv[4]), sys.argv[5] == "keep"
        if what == "client":
            lock = threading.Lock()
            threads = [threading.Thread(target=by_http_client, args=(host, int(port or 80), plan, lock, keep)) for _ in range(at_once)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            asyncio.run(main_asyncio(host, int(port or 80), plan, at_once, keep))


if __name__ == "__main__":
    main()
