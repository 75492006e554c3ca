/* The server: one thread, epoll, sockets non-blocking from accept on. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "tcp-bench.h"

#define MAX_RESPONSE (64u << 20)

struct peer {
	int fd;
	bool want_write, answered_end;
	unsigned hello_got;
	struct hello hello;
	uint64_t request_got; /* of the request that is being read */
	uint64_t received;    /* in all */
	uint64_t out_left, out_sent;
	unsigned char echo[8];
};

static unsigned char *in, *out;

static int listen_socket(void)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICHOST }, *found;
	int one = 1, zero = 0, error = getaddrinfo(options.listen, options.port, &hints, &found);
	if (error) {
		fprintf(stderr, "tcp-bench: listening on %s port %s: %s\n", options.listen, options.port, gai_strerror(error));
		exit(2);
	}
	int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("opening a socket for", options.listen);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (found->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
	if (bind(fd, found->ai_addr, found->ai_addrlen) || listen(fd, 4096))
		die("listening on", options.listen);
	freeaddrinfo(found);
	return fd;
}

static void drop(struct peer *p)
{
	close(p->fd);
	free(p);
}

/* Sends what is due; false when the connection is over. */
static bool flush(int epoll, struct peer *p)
{
	while (p->out_left) {
		size_t size = p->out_left < IO_BUFFER ? p->out_left : IO_BUFFER;
		const unsigned char *from = out + 8;
		if (p->out_sent < 8) {
			memcpy(out, p->echo, 8);
			from = out + p->out_sent;
		}
		ssize_t n = send(p->fd, from, size, MSG_NOSIGNAL);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			if (errno != EAGAIN)
				return false;
			break;
		}
		p->out_left -= n;
		p->out_sent += n;
	}
	bool want = p->out_left > 0;
	if (want != p->want_write) {
		struct epoll_event event = { .events = want ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = p };
		epoll_ctl(epoll, EPOLL_CTL_MOD, p->fd, &event);
		p->want_write = want;
	}
	return true;
}

static bool consume(int epoll, struct peer *p, const unsigned char *data, size_t size)
{
	if (p->hello_got < sizeof p->hello) {
		size_t part = sizeof p->hello - p->hello_got < size ? sizeof p->hello - p->hello_got : size;
		memcpy((char *)&p->hello + p->hello_got, data, part);
		p->hello_got += part;
		data += part;
		size -= part;
		if (p->hello_got < sizeof p->hello)
			return true;
		p->hello = (struct hello){ ntohl(p->hello.magic), ntohl(p->hello.kind), ntohl(p->hello.request_bytes), ntohl(p->hello.response_bytes) };
		if (p->hello.magic != HELLO_MAGIC)
			return false;
		if (p->hello.kind == KIND_PING_PONG && (p->hello.request_bytes < 8 || p->hello.response_bytes < 8 || p->hello.response_bytes > MAX_RESPONSE))
			return false;
	}
	p->received += size;
	while (p->hello.kind == KIND_PING_PONG && size) {
		uint64_t left = p->hello.request_bytes - p->request_got;
		size_t part = left < size ? left : size;
		for (size_t i = 0; i < part && p->request_got + i < 8; i++)
			p->echo[p->request_got + i] = data[i];
		p->request_got += part;
		data += part;
		size -= part;
		if (p->request_got == p->hello.request_bytes) {
			if (p->out_left)
				return false; /* a request before the answer to the last: not this protocol */
			p->request_got = p->out_sent = 0;
			p->out_left = p->hello.response_bytes;
			if (!flush(epoll, p))
				return false;
		}
	}
	return true;
}

static bool readable(int epoll, struct peer *p)
{
	/* Bounded, so that one bulk sender does not keep the others waiting. */
	for (int round = 0; round < 4; round++) {
		ssize_t n = recv(p->fd, in, IO_BUFFER, 0);
		if (n > 0) {
			if (!consume(epoll, p, in, n))
				return false;
			if (n < IO_BUFFER)
				return true;
			continue;
		}
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		/* The end of a bulk transfer is answered with its size. */
		if (p->hello.kind != KIND_SINK || p->answered_end)
			return false;
		p->answered_end = true;
		for (int i = 0; i < 8; i++)
			p->echo[i] = p->received >> (56 - 8 * i);
		p->out_sent = 0;
		p->out_left = 8;
		flush(epoll, p);
		return false;
	}
	return true;
}

int run_server(void)
{
	in = malloc(IO_BUFFER);
	out = calloc(1, IO_BUFFER + 8);
	if (!in || !out)
		die("allocating", "buffers");
	int epoll = epoll_or_die(), listener = listen_socket();
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL }, events[256];
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	fprintf(stderr, "tcp-bench: listening on %s port %s\n", options.listen, options.port);
	while (!stop_requested) {
		int n = epoll_wait(epoll, events, 256, 1000);
		for (int i = 0; i < n; i++) {
			struct peer *p = events[i].data.ptr;
			if (!p) {
				int fd, one = 1;
				while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
					setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
					p = calloc(1, sizeof *p);
					if (!p)
						die("allocating", "a connection");
					p->fd = fd;
					event = (struct epoll_event){ .events = EPOLLIN, .data.ptr = p };
					epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
				}
				continue;
			}
			if ((events[i].events & EPOLLOUT && !flush(epoll, p)) || (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !readable(epoll, p)))
				drop(p);
		}
	}
	return 0;
}
