/*
 * The client: one thread, epoll, sockets non-blocking from the start (a socket that ever blocks would never be
 * short-circuited). Each connection has at most one request under way; a request that gets no answer is a failure, not a
 * retry.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "http.h"
#include "tcp-bench.h"

enum state { CLOSED, CONNECTING, BUSY, PAUSED };

struct connection {
	int fd;
	enum state state;
	bool want_write, drop_after;
	uint64_t started, deadline, resume;
	/* Requests begun and answered in all, and answered since it was opened. */
	uint64_t sequence, answered, answered_here;
	const unsigned char *out;
	size_t out_left;
	/* ping-pong: hello, then one request; HTTP: with --vary, the request under way */
	unsigned char *request;
	/* ping-pong */
	uint64_t response_got;
	bool greeted, wrong;
	/* HTTP */
	struct http_response response;
};

static int epoll_fd, active;
static struct sockaddr_storage target;
static socklen_t target_size;
static unsigned char *in;
static struct http_request http_usual, http_other;
static struct connection *all;
static int all_count;

/* The phase: what is started, what is counted. */
static struct {
	uint64_t left; /* requests that may still begin */
	bool counted, new_connection_each, draining;
	/* Connections without their --warm-requests, and whether they are waited for. */
	int cold;
	bool warming;
} phase;

static void set_events(struct connection *c, bool want_write)
{
	if (c->want_write == want_write)
		return;
	struct epoll_event event = { .events = want_write ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c };
	epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
	c->want_write = want_write;
}

static void close_connection(struct connection *c)
{
	if (c->fd >= 0)
		close(c->fd);
	if (c->state == BUSY || c->state == CONNECTING)
		active--;
	c->fd = -1;
	c->state = CLOSED;
	c->greeted = false;
}

static void failed(struct connection *c, enum failure kind, const char *what, int error)
{
	static const char *const names[] = { "connect", "closed", "timeout", "status", "malformed" };
	results.failures[kind]++;
	if (!results.first_failure[0]) {
		struct sockaddr_in6 own = { 0 };
		socklen_t size = sizeof own;
		if (c->fd >= 0)
			getsockname(c->fd, (struct sockaddr *)&own, &size);
		snprintf(results.first_failure, sizeof results.first_failure, "%s: %s%s%s (request %llu, %.1f ms after it began, local port %u)",
			 names[kind], what, error ? ": " : "", error ? strerror(error) : "", (unsigned long long)results.requests + 1,
			 (now_ns() - c->started) / 1e6, ntohs(own.sin6_port));
	}
	close_connection(c);
	c->resume = now_ns() + 10000000; /* a server that is gone shall not make a busy loop of us */
}

/* Connections do not ask for the other path in step. */
static const struct http_request *next_http_request(const struct connection *c)
{
	return options.other_each && (c->sequence + (c - all)) % options.other_each == 0 ? &http_other : &http_usual;
}

static void begin(struct connection *c)
{
	results.requests_begun++;
	if (options.mode == MODE_HTTP) {
		const struct http_request *r = next_http_request(c);
		http_response_start(&c->response, options.tally_header, options.tally_body, !strcmp(options.method, "HEAD"));
		c->out = (unsigned char *)r->text;
		c->out_left = r->size;
		c->sequence++;
		if (options.vary) {
			memcpy(c->request, r->text, r->size);
			http_request_number(r, c->request, c->sequence);
			c->out = c->request;
		}
	} else {
		uint64_t tag = ++c->sequence << 16 | (uint64_t)(c - all);
		unsigned char *body = c->request + sizeof(struct hello);
		memcpy(body, &tag, 8);
		c->out = c->greeted ? body : c->request;
		c->out_left = options.request_bytes + (c->greeted ? 0 : sizeof(struct hello));
		c->response_got = 0;
		c->wrong = false;
		c->greeted = true;
	}
	c->state = BUSY;
}

static void flush(struct connection *c)
{
	while (c->out_left) {
		ssize_t n = send(c->fd, c->out, c->out_left, MSG_NOSIGNAL);
		if (n < 0) {
			if (errno == EAGAIN) {
				set_events(c, true);
				return;
			}
			if (errno == EINTR)
				continue;
			failed(c, FAILED_CLOSED, "sending", errno);
			return;
		}
		results.bytes_sent += n;
		c->out += n;
		c->out_left -= n;
	}
	set_events(c, false);
}

/* Opens a connection when there is none, and sends the next request; does nothing when the phase has no more to start. */
static void next_request(struct connection *c)
{
	if (phase.draining || !phase.left) {
		if (c->state != CLOSED && phase.new_connection_each)
			close_connection(c);
		else if (c->state == PAUSED)
			c->resume = UINT64_MAX;
		return;
	}
	phase.left--;
	active++;
	c->started = now_ns();
	c->deadline = c->started + (uint64_t)(options.timeout_s * 1e9);
	if (c->state == PAUSED) {
		begin(c);
		flush(c);
		return;
	}
	int one = 1;
	c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		die("opening", "a socket");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT, .data.ptr = c };
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
	c->want_write = true;
	c->drop_after = false;
	/* Of those that are opened at the beginning some end sooner, or all would always be opened at once. */
	c->answered_here = c->sequence ? 0 : (c - all) * options.requests_per_connection / options.connections;
	c->state = CONNECTING;
	results.connections_opened++;
	if (connect(c->fd, (struct sockaddr *)&target, target_size) && errno != EINPROGRESS)
		failed(c, FAILED_CONNECT, "connecting", errno);
}

static void tally(const char *value)
{
	for (int i = 0; i < results.tally_count; i++)
		if (!strcmp(results.tally[i].value, value)) {
			results.tally[i].count++;
			return;
		}
	if (results.tally_count == MAX_TALLY)
		return;
	snprintf(results.tally[results.tally_count].value, sizeof results.tally[0].value, "%s", value);
	results.tally[results.tally_count++].count = 1;
}

static void completed(struct connection *c)
{
	uint64_t now = now_ns();
	if (options.mode == MODE_HTTP) {
		int status = c->response.status;
		if (phase.counted || status >= 400)
			results.statuses[status < 600 ? status : 599]++;
		if (status >= 400) {
			char text[32];
			snprintf(text, sizeof text, "answer %d", status);
			/* The connection itself is fine: count, and go on with it. */
			results.failures[FAILED_STATUS]++;
			if (!results.first_failure[0])
				snprintf(results.first_failure, sizeof results.first_failure, "status: %s: %s", text, c->response.tally);
		}
		if (phase.counted && (options.tally_body || options.tally_header))
			tally(c->response.tally);
		c->drop_after = c->response.close;
	}
	if (phase.counted) {
		results.requests++;
		histogram_add(&results.latency, now - c->started);
	}
	active--;
	c->state = PAUSED;
	c->answered_here++;
	if (++c->answered == options.warm_requests)
		phase.cold--;
	if (c->drop_after && !phase.new_connection_each)
		results.closed_by_server++;
	if (c->drop_after || phase.new_connection_each || c->answered_here == options.requests_per_connection) {
		c->state = PAUSED;
		close_connection(c);
	}
	if (options.pause_s > 0)
		c->resume = now + (uint64_t)(options.pause_s * 1e9);
	else
		next_request(c);
}

/* False when the rest of the data belongs to no request. */
static void on_data(struct connection *c, const unsigned char *data, size_t size)
{
	results.bytes_received += size;
	if (c->state != BUSY) {
		active++; /* failed() takes one away, and the connection counts as busy for it */
		c->state = BUSY;
		failed(c, FAILED_MALFORMED, "data without a request", 0);
		return;
	}
	if (options.mode == MODE_HTTP) {
		switch (http_response_parse(&c->response, data, size)) {
		case HTTP_MORE:
			return;
		case HTTP_DONE:
			completed(c);
			return;
		case HTTP_BAD:
			failed(c, FAILED_MALFORMED, c->response.problem, 0);
			return;
		}
	}
	const unsigned char *tag = c->request + sizeof(struct hello);
	for (size_t i = 0; i < size && c->response_got + i < 8; i++)
		c->wrong |= data[i] != tag[c->response_got + i];
	c->response_got += size;
	if (c->wrong || c->response_got > options.response_bytes)
		failed(c, FAILED_MALFORMED, c->wrong ? "another request's answer" : "a longer answer than asked for", 0);
	else if (c->response_got == options.response_bytes)
		completed(c);
}

static void on_event(struct connection *c, uint32_t events)
{
	if (c->state == CONNECTING) {
		int error = 0;
		socklen_t size = sizeof error;
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
		if (error) {
			failed(c, FAILED_CONNECT, "connecting", error);
			return;
		}
		if (!(events & EPOLLOUT))
			return;
		begin(c);
		flush(c);
		return;
	}
	if (events & EPOLLOUT && c->state == BUSY) {
		flush(c);
		if (c->state == CLOSED)
			return;
	}
	if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return;
	ssize_t n = recv(c->fd, in, IO_BUFFER, 0);
	if (n > 0) {
		on_data(c, in, n);
		return;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	int error = n < 0 ? errno : 0;
	if (c->state == BUSY && options.mode == MODE_HTTP && !error && http_response_end(&c->response)) {
		c->response.close = true;
		completed(c);
		return;
	}
	if (c->state == BUSY) {
		failed(c, FAILED_CLOSED, error ? "receiving" : "the server closed before the whole answer", error);
		return;
	}
	results.closed_by_server++; /* idle: nothing is lost, the next request opens a new connection */
	close_connection(c);
}

/* Runs until `until`, or until the phase's requests are all answered. */
static void run_until(uint64_t until)
{
	struct epoll_event events[256];
	uint64_t next_scan = 0, next_progress = now_ns() + (uint64_t)(options.progress_s * 1e9);
	bool pausing = options.pause_s > 0;
	for (;;) {
		uint64_t now = now_ns();
		if (now >= until || (phase.draining ? !active : stop_requested) || (!phase.left && !active) || (phase.warming && phase.cold <= 0))
			return;
		if (now >= next_scan) {
			next_scan = now + (pausing ? 1000000 : 20000000);
			for (int i = 0; i < all_count; i++) {
				struct connection *c = &all[i];
				if ((c->state == BUSY || c->state == CONNECTING) && now > c->deadline)
					failed(c, FAILED_TIMEOUT, c->state == CONNECTING ? "no connection" : "no answer", 0);
				if ((c->state == PAUSED || c->state == CLOSED) && now >= c->resume)
					next_request(c);
			}
		}
		if (options.progress_s > 0 && phase.counted && !phase.draining && now >= next_progress) {
			next_progress += (uint64_t)(options.progress_s * 1e9);
			print_progress();
		}
		int n = epoll_wait(epoll_fd, events, 256, pausing ? 1 : 20);
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;
			if (c->fd >= 0)
				on_event(c, events[i].events);
		}
	}
}

static void start_phase(uint64_t count, bool counted, bool new_connection_each, int connections)
{
	phase.left = count ? count : UINT64_MAX;
	phase.counted = counted;
	phase.new_connection_each = new_connection_each;
	phase.draining = false;
	all_count = connections;
	uint64_t now = now_ns();
	for (int i = 0; i < connections; i++) {
		/* Paused clients do not start in step, or each pause would end in a burst. */
		all[i].resume = options.pause_s > 0 ? now + (uint64_t)(options.pause_s * 1e9 * i / connections) : 0;
		if (all[i].state == PAUSED || all[i].state == CLOSED)
			if (!all[i].resume)
				next_request(&all[i]);
	}
}

/* Lets what is under way end, so that a failure after the last start is still seen. */
static void drain(void)
{
	phase.draining = true;
	run_until(now_ns() + (uint64_t)(options.timeout_s * 1e9) + 50000000);
}

/* Says that it is warm, and goes on when the other side has closed its end. */
static void wait_for_input(void)
{
	char bytes[64];
	drain();
	printf("{\"final\":false,\"warm\":true}\n");
	fflush(stdout);
	while (!stop_requested && read(0, bytes, sizeof bytes) > 0)
		;
}

static uint64_t cgroup_usec(const char *path)
{
	char file[4096], line[256];
	unsigned long long value = 0;
	snprintf(file, sizeof file, "%s/cpu.stat", path);
	FILE *f = fopen(file, "re");
	if (!f)
		die("reading", file);
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "usage_usec %llu", &value) == 1)
			break;
	fclose(f);
	return value;
}

/* Time in which some CPU was not idle, in steps of a clock tick. */
static uint64_t machine_usec(void)
{
	unsigned long long v[8] = { 0 };
	FILE *f = fopen("/proc/stat", "re");
	if (!f)
		die("reading", "/proc/stat");
	if (fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]) < 7)
		die("reading", "/proc/stat");
	fclose(f);
	return (v[0] + v[1] + v[2] + v[5] + v[6]) * 1000000ull / sysconf(_SC_CLK_TCK);
}

void read_cpu_start(void)
{
	for (int i = 0; i < options.cgroup_count; i++)
		results.cgroup_usec[i] = cgroup_usec(options.cgroups[i]);
	results.machine_usec = machine_usec();
}

void read_cpu_end(void)
{
	for (int i = 0; i < options.cgroup_count; i++)
		results.cgroup_usec[i] = cgroup_usec(options.cgroups[i]) - results.cgroup_usec[i];
	results.machine_usec = machine_usec() - results.machine_usec;
}

void run_load(void)
{
	struct hello hello = { htonl(HELLO_MAGIC), htonl(KIND_PING_PONG), htonl(options.request_bytes), htonl(options.response_bytes) };
	resolve(&target, &target_size);
	epoll_fd = epoll_or_die();
	in = malloc(IO_BUFFER);
	all = calloc(options.connections, sizeof *all);
	if (!in || !all)
		die("allocating", "connections");
	size_t own_request_size = sizeof hello + options.request_bytes;
	if (options.mode == MODE_HTTP) {
		http_request_make(&http_usual, options.path);
		if (options.other_path)
			http_request_make(&http_other, options.other_path);
		own_request_size = !options.vary ? 0 : http_usual.size > http_other.size ? http_usual.size : http_other.size;
	}
	for (int i = 0; i < options.connections; i++) {
		all[i].fd = -1;
		if (!own_request_size)
			continue;
		all[i].request = calloc(1, own_request_size);
		if (!all[i].request)
			die("allocating", "requests");
		if (options.mode != MODE_HTTP)
			memcpy(all[i].request, &hello, sizeof hello);
	}
	uint64_t limit = UINT64_MAX;

	if (options.warm_connections) {
		start_phase(options.warm_connections, false, true, 1);
		run_until(now_ns() + 10000000000ull);
		drain();
	}
	if (options.warm_up_s > 0 || options.warm_requests) {
		phase.cold = 0;
		for (int i = 0; i < options.connections; i++)
			phase.cold += all[i].answered < options.warm_requests;
		start_phase(0, false, options.new_connection_each, options.connections);
		run_until(now_ns() + (uint64_t)(options.warm_up_s * 1e9));
		phase.warming = options.warm_requests;
		if (phase.warming)
			run_until(now_ns() + (uint64_t)(options.timeout_s * 1e9));
		phase.warming = false;
		/* Without --wait, what is under way is not waited for: the measured part shall begin under load. */
	}
	if (options.wait)
		wait_for_input();
	results.bytes_sent = results.bytes_received = results.connections_opened = results.closed_by_server = results.requests_begun = 0;
	read_cpu_start();
	uint64_t from = now_ns();
	if (options.duration_s > 0)
		limit = from + (uint64_t)(options.duration_s * 1e9);
	uint64_t busy = active;
	start_phase(options.count, true, options.new_connection_each, options.connections);
	if (options.count && busy)
		phase.left = phase.left > busy ? phase.left - busy : 0;
	run_until(limit);
	results.seconds = (now_ns() - from) / 1e9;
	read_cpu_end();
	phase.counted = phase.counted && options.count;
	drain();
	for (int i = 0; i < options.connections; i++)
		if (all[i].fd >= 0)
			close(all[i].fd);
}
