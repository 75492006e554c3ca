"""Sockets by command, one JSON line each, for tests that step through exchanges: what is sent, when and by whom is the test's.

All sockets are non-blocking, as event-driven programs have them; waiting is done by select. Answers are JSON lines too.
  listen NAME ADDRESS PORT | accept NAME FROM | connect NAME ADDRESS PORT [mark] [[from address, port]] | send NAME DATA [more] | receive NAME COUNT [seconds]
  empty NAME | blocking NAME YES | again NAME ADDRESS PORT | close NAME | port NAME | shutdown NAME | reset NAME
DATA is latin-1. `receive` ends at COUNT bytes, at the end of the stream, at an error, or after `seconds`.
"""
import ctypes
import json
import select
import socket
import struct
import sys
import time

sockets = {}
SO_MARK = 36


def wait(sock, write, seconds):
    readable, writable, _ = select.select([] if write else [sock], [sock] if write else [], [], seconds)
    return bool(readable or writable)


def make(address):
    made = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def listen(name, address, port):
    made = make(address)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(64)
    sockets[name] = made
    return {}


def accept(name, origin, seconds=5):
    if not wait(sockets[origin], False, seconds):
        return {'error': 'nobody connects'}
    made, peer = sockets[origin].accept()
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sockets[name] = made
    return {'peer': peer[0], 'port': peer[1]}


def connect(name, address, port, mark=None, origin=None):
    made = make(address)
    if origin is not None:
        made.bind(tuple(origin))
    if mark is not None:
        made.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
    sockets[name] = made
    try:
        made.connect((address, port))
    except BlockingIOError:
        pass
    if not wait(made, True, 5):
        return {'error': 'timeout'}
    error = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return {'error': error} if error else {'port': made.getsockname()[1]}


def send(name, data, more=False):
    left = data.encode('latin-1')
    end = time.monotonic() + 5
    while left and time.monotonic() < end:
        try:
            left = left[sockets[name].send(left, socket.MSG_MORE if more else 0):]
        except BlockingIOError:
            wait(sockets[name], True, 1)
        except OSError as error:
            return {'error': error.strerror}
    return {'error': 'timeout'} if left else {}


def receive(name, count, seconds=5):
    got = b''
    end = time.monotonic() + seconds
    while len(got) < count:
        left = end - time.monotonic()
        if left <= 0 or not wait(sockets[name], False, left):
            return {'data': got.decode('latin-1'), 'timeout': True}
        try:
            more = sockets[name].recv(min(count - len(got), 1 << 16))
        except BlockingIOError:
            continue
        except OSError as error:
            return {'data': got.decode('latin-1'), 'error': error.strerror}
        if not more:
            return {'data': got.decode('latin-1'), 'end': True}
        got += more
    return {'data': got.decode('latin-1')}


def close(name):
    sockets.pop(name).close()
    return {}


def empty(name):
    return {'sent': sockets[name].send(b'')}


def blocking(name, is_blocking):
    sockets[name].setblocking(is_blocking)
    return {}


def again(name, address, port):
    """connect(AF_UNSPEC), then to another: the same socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sockets[name].fileno(), bytes(16), 16):
        return {'error': ctypes.get_errno()}
    try:
        sockets[name].connect((address, port))
    except BlockingIOError:
        pass
    return {} if wait(sockets[name], True, 5) else {'error': 'timeout'}


def port(name):
    return {'port': sockets[name].getsockname()[1]}


def shutdown(name):
    sockets[name].shutdown(socket.SHUT_WR)
    return {}


def reset(name):
    sockets[name].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    return close(name)


commands = {f.__name__: f for f in (listen, accept, connect, send, receive, empty, blocking, again, close, port, shutdown, reset)}
for line in sys.stdin:
    command, *arguments = json.loads(line)
    try:
        answer = commands[command](*arguments)
    except Exception as error:  # told to the test, which fails by it
        answer = {'failure': repr(error)}
    print(json.dumps(answer), flush=True)
