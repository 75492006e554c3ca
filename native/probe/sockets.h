/* What every case stands on: options, entering a pod, opening, reading and writing sockets, and the shared results. */
#pragma once

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

#define MAX_CGROUPS 8
#define BUFFER (64 << 10)

struct side {
	const char *netns, *cgroups[MAX_CGROUPS];
	int cgroup_count;
	bool blocking;
	int uid;
};

static struct {
	const char *listen, *connect, *bind;
	const char *device;
	int connect_port, seed, rcvbuf;
	bool connect_timeout, mptcp, tls, zerocopy, hold;
	int port, client_port, count, size, warm, delay_ms, timeout_s;
	long long bytes;
	bool fastopen;
	struct side server, client;
} opt = { .listen = "127.0.0.1", .connect = NULL, .port = 7777, .count = 20, .size = 64, .delay_ms = 2, .timeout_s = 30, .bytes = 1 << 20 };

/* What both processes find out, in memory they share. */
static volatile struct shared {
	int ready;
	uint64_t sent_hash[2], got_hash[2]; /* 0: client to server, 1: server to client */
	long long sent[2], got[2];
	long long queued, charged, room;
	int ok, eagain, other;
	int failed;
	char failure[200];
	char original[2][80], server_peer[80], server_accepted[80], server_later[80], client_peer[80], client_name[80], client_original[2][80];
} *shared;

static void fail(const char *action)
{
	if (!__sync_lock_test_and_set(&shared->failed, 1))
		snprintf((char *)shared->failure, sizeof shared->failure, "%s: %s", action, strerror(errno));
	_exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t random_state = 88172645463325252ull;
static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	return random_state ^= random_state << 17;
}

/* FNV-1a over 8-byte words would depend on how reads split; so over bytes, unrolled by the compiler. */
static uint64_t hash(uint64_t h, const unsigned char *data, size_t size)
{
	for (size_t i = 0; i < size; i++)
		h = (h ^ data[i]) * 1099511628211ull;
	return h;
}
#define HASH_START 1469598103934665603ull

static void enter(const struct side *side)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < side->cgroup_count; i++) {
		char path[4096];
		snprintf(path, sizeof path, "%s/cgroup.procs", side->cgroups[i]);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1)
			fail("joining cgroup");
		close(fd);
	}
	if (side->netns) {
		int fd = open(side->netns, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || setns(fd, CLONE_NEWNET))
			fail("entering network namespace");
		close(fd);
	}
	if (side->uid && setresuid(side->uid, side->uid, side->uid))
		fail("changing the user id");
}

static socklen_t address_of(const char *text, int port, struct sockaddr_storage *storage)
{
	struct sockaddr_in *v4 = (void *)storage;
	struct sockaddr_in6 *v6 = (void *)storage;
	memset(storage, 0, sizeof *storage);
	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof *v4;
	}
	char bare[INET6_ADDRSTRLEN];
	const char *zone = strchr(text, '%');
	snprintf(bare, sizeof bare, "%.*s", zone ? (int)(zone - text) : (int)sizeof bare - 1, text);
	if (zone)
		v6->sin6_scope_id = if_nametoindex(zone + 1);
	if (inet_pton(AF_INET6, bare, &v6->sin6_addr) != 1) {
		errno = EINVAL;
		fail("reading an address");
	}
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(port);
	return sizeof *v6;
}

static void wait_for(int fd, short events)
{
	struct pollfd p = { fd, events, 0 };
	int n = poll(&p, 1, opt.timeout_s * 1000);
	if (n == 0)
		errno = ETIMEDOUT;
	if (n <= 0)
		fail(events == POLLIN ? "waiting to read" : "waiting to write");
}

static int listen_socket(void)
{
	struct sockaddr_storage a;
	socklen_t size = address_of(opt.listen, opt.port, &a);
	int fd = socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, opt.mptcp ? IPPROTO_MPTCP : 0), one = 1, zero = 0;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (a.ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
	if (opt.fastopen) {
		int queue = 64;
		setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof queue);
	}
	if (opt.rcvbuf && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &opt.rcvbuf, sizeof opt.rcvbuf))
		fail("setting the receive buffer");
	if (fd < 0 || bind(fd, (void *)&a, size) || listen(fd, 1024))
		fail("listening");
	return fd;
}

/* What accept4() said of the last one. */
static struct sockaddr_storage accepted_from;

static int accept_one(int listener)
{
	socklen_t size = sizeof accepted_from;
	wait_for(listener, POLLIN);
	int fd = accept4(listener, (void *)&accepted_from, &size, SOCK_CLOEXEC | (opt.server.blocking ? 0 : SOCK_NONBLOCK));
	if (fd < 0)
		fail("accepting");
	struct timeval limit = { .tv_sec = opt.timeout_s };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	return fd;
}

static int connect_one(void)
{
	struct sockaddr_storage a, from;
	const char *target = opt.connect ? opt.connect : opt.listen;
	socklen_t size = address_of(target, opt.connect_port ? opt.connect_port : opt.port, &a);
	bool nonblocking = !opt.client.blocking || opt.connect_timeout;
	int fd = socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0), opt.mptcp ? IPPROTO_MPTCP : 0),
	    one = 1;
	if (opt.zerocopy && setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one))
		fail("switching zero copy on");
	if (opt.device && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, opt.device, strlen(opt.device)))
		fail("binding to a device");
	if (opt.client_port || opt.bind) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		const char *any = a.ss_family == AF_INET6 ? "::" : "0.0.0.0";
		socklen_t from_size = address_of(opt.bind ? opt.bind : any, opt.client_port, &from);
		if (bind(fd, (void *)&from, from_size))
			fail("binding the client");
	}
	if (opt.fastopen)
		setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof one);
	if (connect(fd, (void *)&a, size) && errno != EINPROGRESS)
		fail("connecting");
	if (nonblocking && !opt.fastopen) {
		wait_for(fd, POLLOUT);
		int error = 0;
		socklen_t n = sizeof error;
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n);
		if (error) {
			errno = error;
			fail("connecting");
		}
	}
	if (opt.tls && setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls"))
		fail("switching kernel TLS on");
	if (opt.connect_timeout)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static void write_all(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL);
		if (n > 0)
			done += n;
		else if (errno == EAGAIN)
			wait_for(fd, POLLOUT);
		else
			fail("sending");
	}
}

/* Reads exactly `size` bytes, or to the end of the stream; returns what came, -1 with errno when recv failed. */
static ssize_t read_all(int fd, bool blocking, void *data, size_t size)
{
	size_t done = 0;
	while (done < size) {
		ssize_t n = recv(fd, (char *)data + done, size - done, 0);
		if (n == 0)
			break;
		if (n > 0)
			done += n;
		else if (errno == EAGAIN && !blocking)
			wait_for(fd, POLLIN);
		else
			return -1;
	}
	return done;
}

/* Sends and receives at once, `limit` bytes each way, in pieces of random size. */
static void exchange(int fd, int out, uint64_t seed)
{
	static unsigned char output[BUFFER], input[BUFFER];
	uint64_t sent_hash = HASH_START, got_hash = HASH_START;
	long long sent = 0, got = 0;
	size_t piece = 0, offset = 0;
	random_state = seed ^ (opt.seed * 0xd6e8feb86659fd93ull);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	while (sent < opt.bytes || got < opt.bytes) {
		struct pollfd p = { fd, POLLIN | (sent < opt.bytes ? POLLOUT : 0), 0 };
		int n = poll(&p, 1, opt.timeout_s * 1000);
		if (n == 0)
			errno = ETIMEDOUT;
		if (n <= 0)
			fail("waiting for the other end");
		if (sent < opt.bytes && (p.revents & POLLOUT)) {
			if (offset == piece) {
				uint64_t kind = next_random() & 3;
				piece = kind == 0 ? 1 + next_random() % 64 : kind == 1 ? 1 + next_random() % 4096 : 1 + next_random() % BUFFER;
				if ((long long)piece > opt.bytes - sent)
					piece = opt.bytes - sent;
				for (size_t i = 0; i < piece; i += 8) {
					uint64_t word = next_random();
					memcpy(output + i, &word, piece - i < 8 ? piece - i : 8);
				}
				offset = 0;
			}
			ssize_t w = send(fd, output + offset, piece - offset, MSG_NOSIGNAL);
			if (w > 0) {
				sent_hash = hash(sent_hash, output + offset, w);
				offset += w;
				sent += w;
			} else if (errno != EAGAIN) {
				fail("sending");
			}
		}
		if (p.revents & (POLLIN | POLLHUP)) {
			ssize_t r = recv(fd, input, sizeof input, 0);
			if (r > 0) {
				got_hash = hash(got_hash, input, r);
				got += r;
			} else if (r == 0) {
				break;
			} else if (errno != EAGAIN) {
				fail("receiving");
			}
		}
	}
	shared->sent[out] = sent;
	shared->sent_hash[out] = sent_hash;
	shared->got[!out] = got;
	shared->got_hash[!out] = got_hash;
	/* wait until the other end has everything: a close with unread data would reset it */
	shutdown(fd, SHUT_WR);
	while (recv(fd, input, sizeof input, 0) != 0) {
		if (errno != EAGAIN)
			break;
		struct pollfd p = { fd, POLLIN, 0 };
		if (poll(&p, 1, opt.timeout_s * 1000) <= 0)
			break;
	}
}

static void warm_server(int listener)
{
	char byte;
	for (int i = 0; i < opt.warm; i++) {
		int fd = accept_one(listener);
		if (read_all(fd, opt.server.blocking, &byte, 1) == 1)
			write_all(fd, &byte, 1);
		read_all(fd, opt.server.blocking, &byte, 1);
		close(fd);
	}
}

static void warm_client(void)
{
	char byte = 'w';
	int saved = opt.client_port;
	opt.client_port = 0;
	for (int i = 0; i < opt.warm; i++) {
		int fd = connect_one();
		write_all(fd, &byte, 1);
		read_all(fd, opt.client.blocking, &byte, 1);
		close(fd);
	}
	opt.client_port = saved;
}

static void fill(unsigned char *buffer, size_t size)
{
	for (size_t i = 0; i < size; i += 8) {
		uint64_t word = next_random();
		memcpy(buffer + i, &word, size - i < 8 ? size - i : 8);
	}
}

static void tally(ssize_t got, ssize_t expected)
{
	if (got == expected)
		shared->ok++;
	else if (got < 0 && errno == EAGAIN)
		shared->eagain++;
	else
		shared->other++;
}
