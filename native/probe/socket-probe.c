/*
 * Real sockets behaving in the ways that break short-circuits: run between two namespaces and two cgroups, one case an
 * invocation, one JSON line out. The agent's self-test and the tests of the kernel rules stand on it. C, because Node has
 * no blocking socket and no splice(2), and those are what must be tried.
 *
 * socket-probe CASE [--server-netns P] [--server-cgroup P]... [--client-netns P] [--client-cgroup P]...
 *   [--listen ADDRESS] [--connect ADDRESS] [--port N] [--count N] [--bytes N] [--size N] [--blocking-server]
 *   [--blocking-client] [--timeout SECONDS] [--delay MS] [--warm N] [--client-port N] [--fastopen] [--bind ADDRESS]
 *   [--connect-port N] [--server-uid N] [--client-uid N] [--connect-timeout] [--hold MS] [--device NAME] [--seed N]
 *   [--mptcp] [--tls] [--zerocopy]
 *
 * Cases
 *   order       both ends send --bytes in writes of 1 B to 64 KiB and hash what arrives; ok: hashes equal both ways
 *   slow-reader the client sends up to --bytes while the server reads nothing for --delay ms, then reads all;
 *               `queued` is what the kernel took before the first read; ok: hash equal
 *   half-close  --count times: request, shutdown(WR), answer --delay ms later; counts ok, eagain, other
 *   large-close --count times: the server sends --bytes and closes at once, the client reads slowly; ok: all arrived
 *   fionread    --count times: ioctl(FIONREAD) must say --size once poll says readable
 *   splice      the client reads --bytes by splice(2); ok: all arrived
 *   ping-pong   --count exchanges of --size bytes on one connection; `p50_ns`, `p99_ns`, `per_second`
 *   churn       --count connections, one exchange of --size each, told apart by a number; ok: none got another's
 *   addresses   one connection; what each end is told about it: `original4` and `original6` (SO_ORIGINAL_DST of IPv4 and
 *               IPv6 at the server), `server_peer`, `client_peer`, `client_name`; ok: one exchange went through
 * --connect-timeout: the client's socket is non-blocking while it connects and blocking afterwards, as many HTTP clients'.
 * --mptcp: both ends are MPTCP sockets. --tls: the client takes the kernel's TLS as upper layer protocol, with no keys.
 * --zerocopy: the client's sockets have SO_ZEROCOPY.
 * --hold: the client keeps its last connection open for so long. --device: SO_BINDTODEVICE at the client.
 * --warm opens that many connections first, with one small exchange each (probation).
 * Exit 0: the case ran (see `ok`); 2: usage or set-up failed, with a line on stderr.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
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
	int connect_port, hold_ms, seed;
	bool connect_timeout, mptcp, tls, zerocopy;
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
	long long queued;
	int ok, eagain, other;
	int failed;
	char failure[200];
	char original[2][80], server_peer[80], client_peer[80], client_name[80];
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
	if (inet_pton(AF_INET6, text, &v6->sin6_addr) != 1) {
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
	if (fd < 0 || bind(fd, (void *)&a, size) || listen(fd, 1024))
		fail("listening");
	return fd;
}

static int accept_one(int listener)
{
	wait_for(listener, POLLIN);
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | (opt.server.blocking ? 0 : SOCK_NONBLOCK));
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

/* Each case is a pair: what the server does with its listener, and what the client does. */

static void order_server(int listener) { exchange(accept_one(listener), 1, 0x9e3779b97f4a7c15ull); }
static void order_client(void) { exchange(connect_one(), 0, 0xc2b2ae3d27d4eb4full); }

static void slow_server(int listener)
{
	static unsigned char input[BUFFER];
	int fd = accept_one(listener);
	usleep(opt.delay_ms * 1000);
	shared->queued = shared->sent[0];
	uint64_t h = HASH_START;
	long long got = 0;
	while (got < opt.bytes) {
		ssize_t n = read_all(fd, opt.server.blocking, input, got + BUFFER > opt.bytes ? opt.bytes - got : BUFFER);
		if (n <= 0)
			break;
		h = hash(h, input, n);
		got += n;
	}
	shared->got[0] = got;
	shared->got_hash[0] = h;
	write_all(fd, "!", 1);
	read_all(fd, opt.server.blocking, input, 1);
}
static void slow_client(void)
{
	static unsigned char output[BUFFER];
	int fd = connect_one();
	uint64_t h = HASH_START;
	for (long long sent = 0; sent < opt.bytes; ) {
		size_t piece = opt.bytes - sent < BUFFER ? opt.bytes - sent : BUFFER;
		fill(output, piece);
		for (size_t done = 0; done < piece;) {
			ssize_t n = send(fd, output + done, piece - done, MSG_NOSIGNAL);
			if (n > 0) {
				done += n;
				shared->sent[0] += n;
			} else if (errno == EAGAIN) {
				wait_for(fd, POLLOUT);
			} else {
				fail("sending");
			}
		}
		h = hash(h, output, piece);
		sent += piece;
	}
	shared->sent_hash[0] = h;
	read_all(fd, opt.client.blocking, output, 1);
}

static void half_server(int listener)
{
	char input[256];
	for (int i = 0; i < opt.count; i++) {
		int fd = accept_one(listener);
		while (read_all(fd, opt.server.blocking, input, sizeof input) > 0)
			;
		usleep(opt.delay_ms * 1000);
		write_all(fd, "ANSWER", 6);
		close(fd);
	}
}
static void half_client(void)
{
	char input[16];
	for (int i = 0; i < opt.count; i++) {
		int fd = connect_one();
		write_all(fd, "GET", 3);
		shutdown(fd, SHUT_WR);
		ssize_t n = read_all(fd, opt.client.blocking, input, sizeof input);
		tally(n, 6);
		close(fd);
	}
}

static void large_server(int listener)
{
	static unsigned char output[BUFFER];
	char request;
	for (int i = 0; i < opt.count; i++) {
		int fd = accept_one(listener);
		read_all(fd, opt.server.blocking, &request, 1);
		uint64_t h = HASH_START;
		for (long long sent = 0; sent < opt.bytes;) {
			size_t piece = opt.bytes - sent < BUFFER ? opt.bytes - sent : BUFFER;
			fill(output, piece);
			write_all(fd, output, piece);
			h = hash(h, output, piece);
			sent += piece;
		}
		shared->sent_hash[1] ^= h * (2 * i + 1);
		close(fd);
	}
}
static void large_client(void)
{
	static unsigned char input[BUFFER];
	for (int i = 0; i < opt.count; i++) {
		int fd = connect_one();
		write_all(fd, "?", 1);
		uint64_t h = HASH_START;
		long long got = 0;
		for (ssize_t n; (n = read_all(fd, opt.client.blocking, input, 8192)) > 0; got += n) {
			h = hash(h, input, n);
			if ((got & 0x3ffff) == 0)
				usleep(300);
		}
		shared->got_hash[1] ^= h * (2 * i + 1);
		tally(got, opt.bytes);
		close(fd);
	}
}

static void fionread_server(int listener)
{
	static unsigned char output[BUFFER];
	char request;
	int fd = accept_one(listener);
	for (int i = 0; i < opt.count; i++) {
		if (read_all(fd, opt.server.blocking, &request, 1) != 1)
			return;
		write_all(fd, output, opt.size);
	}
	read_all(fd, opt.server.blocking, &request, 1);
}
static void fionread_client(void)
{
	static unsigned char input[BUFFER];
	int fd = connect_one();
	for (int i = 0; i < opt.count; i++) {
		write_all(fd, "?", 1);
		int pending = 0;
		/* the first segment may hold only a part: wait until it stays, at most 50 ms */
		for (int turn = 0; turn < 50 && pending != opt.size; turn++) {
			wait_for(fd, POLLIN);
			if (turn)
				usleep(1000);
			ioctl(fd, FIONREAD, &pending);
		}
		tally(pending, opt.size);
		read_all(fd, opt.client.blocking, input, opt.size);
	}
}

static void splice_server(int listener)
{
	static unsigned char output[BUFFER];
	char request;
	int fd = accept_one(listener);
	read_all(fd, opt.server.blocking, &request, 1);
	for (long long sent = 0; sent < opt.bytes; sent += BUFFER)
		write_all(fd, output, opt.bytes - sent < BUFFER ? opt.bytes - sent : BUFFER);
	shutdown(fd, SHUT_WR);
	read_all(fd, opt.server.blocking, &request, 1);
}
static void splice_client(void)
{
	int fd = connect_one(), pipes[2], sink = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (pipe2(pipes, O_CLOEXEC) || sink < 0)
		fail("making a pipe");
	write_all(fd, "?", 1);
	long long got = 0;
	uint64_t deadline = now_ns() + 1000000000ull * (opt.timeout_s < 3 ? opt.timeout_s : 3);
	while (got < opt.bytes && now_ns() < deadline) {
		ssize_t n = splice(fd, NULL, pipes[1], NULL, BUFFER, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		if (n == 0)
			break;
		if (n < 0) {
			if (errno != EAGAIN)
				break;
			struct pollfd p = { fd, POLLIN, 0 };
			poll(&p, 1, 100);
			continue;
		}
		got += n;
		while (n > 0) {
			ssize_t w = splice(pipes[0], NULL, sink, NULL, n, SPLICE_F_MOVE);
			if (w <= 0)
				break;
			n -= w;
		}
	}
	shared->got[1] = got;
	tally(got, opt.bytes);
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}
static uint64_t p50, p99, total_ns;

static void ping_server(int listener)
{
	static unsigned char buffer[BUFFER];
	int fd = accept_one(listener), one = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	while (read_all(fd, opt.server.blocking, buffer, opt.size) == opt.size)
		write_all(fd, buffer, opt.size);
}
static void ping_client(void)
{
	static unsigned char buffer[BUFFER];
	uint64_t *took = calloc(opt.count, sizeof *took);
	int fd = connect_one();
	uint64_t start = now_ns();
	for (int i = 0; i < opt.count; i++) {
		uint64_t began = now_ns();
		write_all(fd, buffer, opt.size);
		ssize_t n = read_all(fd, opt.client.blocking, buffer, opt.size);
		tally(n, opt.size);
		took[i] = now_ns() - began;
	}
	total_ns = now_ns() - start;
	qsort(took, opt.count, sizeof *took, compare_u64);
	p50 = took[opt.count / 2];
	p99 = took[(size_t)opt.count * 99 / 100];
	printf("{\"case\":\"ping-pong\",\"ok\":%s,\"count\":%d,\"p50_ns\":%llu,\"p99_ns\":%llu,\"per_second\":%.0f}\n",
	       shared->ok == opt.count ? "true" : "false", opt.count, (unsigned long long)p50, (unsigned long long)p99,
	       opt.count * 1e9 / total_ns);
	fflush(stdout);
}

static void churn_server(int listener)
{
	static unsigned char buffer[BUFFER];
	for (int i = 0; i < opt.count; i++) {
		int fd = accept_one(listener);
		if (read_all(fd, opt.server.blocking, buffer, opt.size) == opt.size)
			write_all(fd, buffer, opt.size);
		read_all(fd, opt.server.blocking, buffer, 1);
		close(fd);
	}
}
static void churn_client(void)
{
	static unsigned char output[BUFFER], input[BUFFER];
	for (int i = 0; i < opt.count; i++) {
		int fd = connect_one();
		memset(output, i * 31 + 7, opt.size);
		memcpy(output, &i, sizeof i);
		write_all(fd, output, opt.size);
		ssize_t n = read_all(fd, opt.client.blocking, input, opt.size);
		tally(n == opt.size && !memcmp(input, output, opt.size) ? opt.size : n == opt.size ? -2 : n, opt.size);
		close(fd);
	}
}

static void name_address(char *out, const struct sockaddr_storage *a)
{
	char text[INET6_ADDRSTRLEN];
	if (a->ss_family == AF_INET) {
		const struct sockaddr_in *v4 = (const void *)a;
		inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
		snprintf(out, 80, "%s:%d", text, ntohs(v4->sin_port));
	} else {
		const struct sockaddr_in6 *v6 = (const void *)a;
		inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
		snprintf(out, 80, "[%s]:%d", text, ntohs(v6->sin6_port));
	}
}

static void addresses_server(int listener)
{
	char byte;
	struct sockaddr_storage a;
	int fd = accept_one(listener);
	const int levels[2] = { IPPROTO_IP, IPPROTO_IPV6 };
	const socklen_t sizes[2] = { sizeof(struct sockaddr_in), sizeof(struct sockaddr_in6) };
	for (int i = 0; i < 2; i++) {
		socklen_t size = sizes[i];
		memset(&a, 0, sizeof a);
		if (getsockopt(fd, levels[i], 80 /* SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST */, &a, &size))
			snprintf((char *)shared->original[i], 80, "%s", strerrorname_np(errno));
		else
			name_address((char *)shared->original[i], &a);
	}
	socklen_t size = sizeof a;
	if (!getpeername(fd, (void *)&a, &size))
		name_address((char *)shared->server_peer, &a);
	if (read_all(fd, opt.server.blocking, &byte, 1) == 1)
		write_all(fd, &byte, 1);
	read_all(fd, opt.server.blocking, &byte, 1);
}
static void addresses_client(void)
{
	char byte = 'a';
	struct sockaddr_storage a;
	int fd = connect_one();
	socklen_t size = sizeof a;
	if (!getpeername(fd, (void *)&a, &size))
		name_address((char *)shared->client_peer, &a);
	size = sizeof a;
	if (!getsockname(fd, (void *)&a, &size))
		name_address((char *)shared->client_name, &a);
	write_all(fd, &byte, 1);
	tally(read_all(fd, opt.client.blocking, &byte, 1), 1);
	usleep(opt.hold_ms * 1000);
}

static const struct probe_case {
	const char *name;
	void (*server)(int listener);
	void (*client)(void);
	bool hashes[2]; /* which directions must have equal hashes */
	bool counts;    /* `ok` must reach --count */
} cases[] = {
	{ "order", order_server, order_client, { true, true }, false },
	{ "slow-reader", slow_server, slow_client, { true, false }, false },
	{ "half-close", half_server, half_client, { false, false }, true },
	{ "large-close", large_server, large_client, { false, true }, true },
	{ "fionread", fionread_server, fionread_client, { false, false }, true },
	{ "splice", splice_server, splice_client, { false, false }, false },
	{ "ping-pong", ping_server, ping_client, { false, false }, true },
	{ "churn", churn_server, churn_client, { false, false }, true },
	{ "addresses", addresses_server, addresses_client, { false, false }, false },
};

static void usage(const char *problem, const char *word)
{
	fprintf(stderr, "socket-probe: %s %s\nusage: socket-probe CASE [options]; cases:", problem, word);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		fprintf(stderr, " %s", cases[i].name);
	fprintf(stderr, "\n");
	exit(2);
}

static const struct probe_case *parse(int argc, char **argv)
{
	enum { SERVER_NETNS = 256, SERVER_CGROUP, CLIENT_NETNS, CLIENT_CGROUP, BLOCKING_SERVER, BLOCKING_CLIENT, FASTOPEN, CLIENT_PORT,
	       CONNECT_PORT, SERVER_UID, CLIENT_UID, CONNECT_TIMEOUT, HOLD, DEVICE, SEED, MPTCP, TLS, ZEROCOPY };
	static const struct option options[] = {
		{ "server-netns", 1, 0, SERVER_NETNS }, { "server-cgroup", 1, 0, SERVER_CGROUP },
		{ "client-netns", 1, 0, CLIENT_NETNS }, { "client-cgroup", 1, 0, CLIENT_CGROUP },
		{ "blocking-server", 0, 0, BLOCKING_SERVER }, { "blocking-client", 0, 0, BLOCKING_CLIENT },
		{ "listen", 1, 0, 'l' }, { "connect", 1, 0, 'c' }, { "bind", 1, 0, 'f' }, { "port", 1, 0, 'p' },
		{ "count", 1, 0, 'n' }, { "bytes", 1, 0, 'b' }, { "size", 1, 0, 's' }, { "timeout", 1, 0, 't' },
		{ "delay", 1, 0, 'd' }, { "warm", 1, 0, 'w' }, { "client-port", 1, 0, CLIENT_PORT }, { "fastopen", 0, 0, FASTOPEN },
		{ "connect-port", 1, 0, CONNECT_PORT }, { "server-uid", 1, 0, SERVER_UID }, { "client-uid", 1, 0, CLIENT_UID },
		{ "connect-timeout", 0, 0, CONNECT_TIMEOUT }, { "hold", 1, 0, HOLD }, { "device", 1, 0, DEVICE },
		{ "seed", 1, 0, SEED }, { "mptcp", 0, 0, MPTCP }, { "tls", 0, 0, TLS }, { "zerocopy", 0, 0, ZEROCOPY },
		{ 0 } };
	if (argc < 2)
		usage("no case", "given");
	const struct probe_case *found = NULL;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (!strcmp(cases[i].name, argv[1]))
			found = &cases[i];
	if (!found)
		usage("unknown case", argv[1]);
	for (int c; (c = getopt_long(argc - 1, argv + 1, "", options, NULL)) != -1;) {
		switch (c) {
		case SERVER_NETNS: opt.server.netns = optarg; break;
		case CLIENT_NETNS: opt.client.netns = optarg; break;
		case SERVER_CGROUP:
			if (opt.server.cgroup_count == MAX_CGROUPS) usage("too many cgroups:", optarg);
			opt.server.cgroups[opt.server.cgroup_count++] = optarg;
			break;
		case CLIENT_CGROUP:
			if (opt.client.cgroup_count == MAX_CGROUPS) usage("too many cgroups:", optarg);
			opt.client.cgroups[opt.client.cgroup_count++] = optarg;
			break;
		case BLOCKING_SERVER: opt.server.blocking = true; break;
		case BLOCKING_CLIENT: opt.client.blocking = true; break;
		case FASTOPEN: opt.fastopen = true; break;
		case CONNECT_PORT: opt.connect_port = atoi(optarg); break;
		case SERVER_UID: opt.server.uid = atoi(optarg); break;
		case CLIENT_UID: opt.client.uid = atoi(optarg); break;
		case CONNECT_TIMEOUT: opt.connect_timeout = opt.client.blocking = true; break;
		case HOLD: opt.hold_ms = atoi(optarg); break;
		case DEVICE: opt.device = optarg; break;
		case SEED: opt.seed = atoi(optarg); break;
		case MPTCP: opt.mptcp = true; break;
		case TLS: opt.tls = true; break;
		case ZEROCOPY: opt.zerocopy = true; break;
		case CLIENT_PORT: opt.client_port = atoi(optarg); break;
		case 'l': opt.listen = optarg; break;
		case 'c': opt.connect = optarg; break;
		case 'f': opt.bind = optarg; break;
		case 'p': opt.port = atoi(optarg); break;
		case 'n': opt.count = atoi(optarg); break;
		case 'b': opt.bytes = atoll(optarg); break;
		case 's': opt.size = atoi(optarg); break;
		case 't': opt.timeout_s = atoi(optarg); break;
		case 'd': opt.delay_ms = atoi(optarg); break;
		case 'w': opt.warm = atoi(optarg); break;
		default: usage("unknown option", "above");
		}
	}
	if (opt.size < (int)sizeof(int) || opt.size > BUFFER)
		usage("--size must be 4 to 65536", "");
	if (opt.count < 1 || opt.bytes < 1 || opt.port < 1 || opt.port > 65535 || opt.timeout_s < 1)
		usage("--count, --bytes, --port or --timeout", "out of range");
	return found;
}

int main(int argc, char **argv)
{
	const struct probe_case *probe = parse(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 2;
	pid_t server = fork();
	if (server == 0) {
		enter(&opt.server);
		int listener = listen_socket();
		shared->ready = 1;
		warm_server(listener);
		probe->server(listener);
		_exit(0);
	}
	for (int i = 0; i < 2000 && !shared->ready && !shared->failed; i++)
		usleep(1000);
	pid_t client = server > 0 && shared->ready ? fork() : -1;
	if (client == 0) {
		enter(&opt.client);
		warm_client();
		probe->client();
		_exit(0);
	}
	int status = 0;
	if (client > 0)
		waitpid(client, &status, 0);
	if (server > 0) {
		if (client <= 0 || status != 0)
			kill(server, SIGKILL);
		waitpid(server, NULL, 0);
	}
	if (client <= 0 || (shared->failed && !shared->ready)) {
		fprintf(stderr, "socket-probe: %s\n", shared->failed ? (char *)shared->failure : "the server did not start");
		return 2;
	}
	if (probe->client == ping_client && !shared->failed)
		return 0;
	bool ok = !shared->failed && status == 0;
	for (int way = 0; way < 2; way++)
		if (probe->hashes[way] && shared->sent_hash[way] != shared->got_hash[way])
			ok = false;
	if (probe->counts && shared->ok != opt.count)
		ok = false;
	if (probe->client == order_client && (shared->got[0] != opt.bytes || shared->got[1] != opt.bytes))
		ok = false;
	if ((probe->client == splice_client || probe->client == addresses_client) && shared->ok != 1)
		ok = false;
	if (probe->client == addresses_client) {
		printf("{\"case\":\"addresses\",\"ok\":%s,\"original4\":\"%s\",\"original6\":\"%s\",\"server_peer\":\"%s\",\"client_peer\":\"%s\",\"client_name\":\"%s\",\"failure\":\"%s\"}\n",
		       ok ? "true" : "false", (char *)shared->original[0], (char *)shared->original[1], (char *)shared->server_peer,
		       (char *)shared->client_peer, (char *)shared->client_name, (char *)shared->failure);
		return 0;
	}
	printf("{\"case\":\"%s\",\"ok\":%s,\"good\":%d,\"eagain\":%d,\"other\":%d,\"sent\":[%lld,%lld],\"got\":[%lld,%lld],\"queued\":%lld,\"failure\":\"%s\"}\n",
	       probe->name, ok ? "true" : "false", shared->ok, shared->eagain, shared->other, shared->sent[0], shared->sent[1],
	       shared->got[0], shared->got[1], shared->queued, (char *)shared->failure);
	return 0;
}
