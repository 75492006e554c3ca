/* Bulk transfer to the server, whose count of received bytes is what the result says. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "tcp-bench.h"

void read_cpu_start(void);
void read_cpu_end(void);

struct stream {
	int fd;
	bool connected, ended, done;
	unsigned answer_got;
	unsigned char answer[8];
};

static void failed(struct stream *s, enum failure kind, const char *what, int error)
{
	results.failures[kind]++;
	if (!results.first_failure[0])
		snprintf(results.first_failure, sizeof results.first_failure, "%s%s%s", what, error ? ": " : "", error ? strerror(error) : "");
	close(s->fd);
	s->done = true;
}

static int open_streams(int epoll, struct stream *streams, int count)
{
	struct sockaddr_storage target;
	socklen_t size;
	resolve(&target, &size);
	for (int i = 0; i < count; i++) {
		struct stream *s = &streams[i];
		s->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (s->fd < 0)
			die("opening", "a socket");
		struct epoll_event event = { .events = EPOLLIN | EPOLLOUT, .data.ptr = s };
		epoll_ctl(epoll, EPOLL_CTL_ADD, s->fd, &event);
		results.connections_opened++;
		if (connect(s->fd, (struct sockaddr *)&target, size) && errno != EINPROGRESS)
			failed(s, FAILED_CONNECT, "connecting", errno);
	}
	return count;
}

/* One event of a stream; `ending`: no more is to be sent. */
static void step(int epoll, struct stream *s, uint32_t events, const unsigned char *data, bool ending)
{
	if (!s->connected) {
		int error = 0;
		socklen_t size = sizeof error;
		getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
		if (error) {
			failed(s, FAILED_CONNECT, "connecting", error);
			return;
		}
		if (!(events & EPOLLOUT))
			return;
		struct hello hello = { htonl(HELLO_MAGIC), htonl(KIND_SINK), 0, 0 };
		if (send(s->fd, &hello, sizeof hello, MSG_NOSIGNAL) != sizeof hello) {
			failed(s, FAILED_CLOSED, "sending", errno);
			return;
		}
		s->connected = true;
	}
	if (events & EPOLLOUT && !ending && !s->ended) {
		for (int round = 0; round < 8; round++) {
			ssize_t n = send(s->fd, data, options.request_bytes, MSG_NOSIGNAL);
			if (n < 0) {
				if (errno != EAGAIN && errno != EINTR)
					failed(s, FAILED_CLOSED, "sending", errno);
				return;
			}
			results.bytes_sent += n;
			results.requests++;
		}
	}
	if (ending && !s->ended) {
		s->ended = true;
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = s };
		epoll_ctl(epoll, EPOLL_CTL_MOD, s->fd, &event);
		shutdown(s->fd, SHUT_WR);
	}
	if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return;
	ssize_t n = recv(s->fd, s->answer + s->answer_got, sizeof s->answer - s->answer_got, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		failed(s, FAILED_CLOSED, n ? "receiving" : "the server closed without its count", n ? errno : 0);
		return;
	}
	s->answer_got += n;
	if (s->answer_got < 8)
		return;
	uint64_t received = 0;
	for (int i = 0; i < 8; i++)
		received = received << 8 | s->answer[i];
	results.bytes_received += received; /* by the server: this mode's result */
	close(s->fd);
	s->done = true;
}

static void transfer(double seconds, double patience)
{
	int epoll = epoll_or_die(), left = options.connections;
	struct stream *streams = calloc(options.connections, sizeof *streams);
	unsigned char *data = malloc(options.request_bytes);
	struct epoll_event events[64];
	if (!streams || !data)
		die("allocating", "streams");
	memset(data, 'u', options.request_bytes);
	open_streams(epoll, streams, options.connections);
	uint64_t until = now_ns() + (uint64_t)(seconds * 1e9), limit = until + (uint64_t)(patience * 1e9);
	bool told = false;
	while (left) {
		uint64_t now = now_ns();
		bool ending = now >= until || stop_requested;
		if (ending && !told) {
			told = true;
			for (int i = 0; i < options.connections; i++)
				if (!streams[i].done && streams[i].connected)
					step(epoll, &streams[i], 0, data, true);
		}
		if (now >= limit)
			for (int i = 0; i < options.connections; i++)
				if (!streams[i].done)
					failed(&streams[i], FAILED_TIMEOUT, "the server's count did not come", 0);
		int n = epoll_wait(epoll, events, 64, 20);
		for (int i = 0; i < n; i++) {
			struct stream *s = events[i].data.ptr;
			if (!s->done)
				step(epoll, s, events[i].events, data, ending);
		}
		left = 0;
		for (int i = 0; i < options.connections; i++)
			left += !streams[i].done;
	}
	close(epoll);
	free(data);
	free(streams);
}

void run_bulk(void)
{
	if (options.warm_connections) {
		int connections = options.connections;
		options.connections = 1;
		for (int i = 0; i < options.warm_connections; i++)
			transfer(0.01, options.timeout_s);
		options.connections = connections;
	}
	if (options.warm_up_s > 0)
		transfer(options.warm_up_s, options.timeout_s);
	results.requests = results.bytes_sent = results.bytes_received = results.connections_opened = 0;
	read_cpu_start();
	uint64_t from = now_ns();
	transfer(options.duration_s > 0 ? options.duration_s : 1, options.timeout_s);
	results.seconds = (now_ns() - from) / 1e9;
	read_cpu_end();
}
