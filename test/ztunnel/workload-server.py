#!/usr/bin/env python3
"""What Istio's CNI agent is to a ztunnel: hands it the network namespaces of the node's pods, over a SOCK_SEQPACKET socket
with descriptors (ZDS, https://github.com/istio/ztunnel/blob/master/proto/zds.proto), neither of which Node can do.

Arguments: the socket's path. Reads one JSON a line: {"add": UID, "netns", "name", "namespace", "serviceAccount"} or
{"del": UID}; a line `ready` goes out when a ztunnel may connect, and for each command that it answered its UID, then what was
wrong, if anything. One ztunnel, for as long as this runs; pods come after it.
"""
import json
import os
import socket
import sys


def field(number, payload):
    """Of wire type 2, shorter than 16 KiB."""
    length = len(payload)
    size = bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
    return bytes([number << 3 | 2]) + size + payload


def add(command):
    workload = b''.join(field(number, command[key].encode()) for number, key in ((1, 'name'), (2, 'namespace'), (3, 'serviceAccount')))
    return field(1, field(1, command['add'].encode()) + field(2, workload))


def answer(connection):
    """WorkloadResponse.ack.error."""
    data = connection.recv(4096)
    if not data:
        raise SystemExit('ztunnel has gone')
    return data[4:].decode() if len(data) > 2 else ''


server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.bind(sys.argv[1])
server.listen(1)
print('ready', flush=True)
ztunnel, _ = server.accept()
if ztunnel.recv(64) != b'\x08\x01':
    raise SystemExit('ztunnel speaks another version than 1')
ztunnel.send(field(3, b''))
answer(ztunnel)
for line in sys.stdin:
    command = json.loads(line)
    if 'add' in command:
        namespace = os.open(command['netns'], os.O_RDONLY)
        socket.send_fds(ztunnel, [add(command)], [namespace])
        os.close(namespace)
    else:
        ztunnel.send(field(2, field(2, command['del'].encode())))
    print(command.get('add') or command['del'], answer(ztunnel), flush=True)
