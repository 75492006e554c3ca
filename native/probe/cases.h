#pragma once

/* Each case is a pair: what the server does with its listener, and what the client does. */

static void order_server(int listener) { exchange(accept_one(listener), 1, 0x9e3779b97f4a7c15ull); }
static void order_client(void) { exchange(connect_one(), 0, 0xc2b2ae3d27d4eb4full); }

static void slow_server(int listener)
{
	static unsigned char input[BUFFER];
	int fd = accept_one(listener);
	/* Until the sender stands still, however slow the machine: what is in flight when time is up says nothing of a bound. */
	long long before = -1;
	for (uint64_t deadline = now_ns() + 1000000000ull * opt.timeout_s; now_ns() < deadline; before = shared->sent[0]) {
		usleep(opt.delay_ms * 1000);
		if (shared->sent[0] > 0 && shared->sent[0] == before)
			break;
	}
	shared->queued = shared->sent[0];
	uint32_t memory[SK_MEMINFO_VARS] = { 0 };
	socklen_t size = sizeof memory;
	if (!getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &size)) {
		shared->charged = memory[SK_MEMINFO_RMEM_ALLOC];
		shared->room = memory[SK_MEMINFO_RCVBUF];
	}
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

/* Sends opt.bytes to whoever asks first; the client asks once more when it has done. */
static int answer_with_bytes(int listener)
{
	static unsigned char output[BUFFER];
	char request;
	int fd = accept_one(listener);
	read_all(fd, opt.server.blocking, &request, 1);
	for (long long sent = 0; sent < opt.bytes; sent += BUFFER)
		write_all(fd, output, opt.bytes - sent < BUFFER ? opt.bytes - sent : BUFFER);
	return fd;
}

static void hidden_server(int listener)
{
	char request;
	int fd = answer_with_bytes(listener);
	read_all(fd, opt.server.blocking, &request, 1);
}
static void hidden_client(void)
{
	static unsigned char input[8192];
	int fd = connect_one(), hidden = 0;
	write_all(fd, "?", 1);
	/* so long that the sender has to fall back to TCP */
	usleep(opt.delay_ms * 1000);
	for (long long got = 0; got < opt.bytes;) {
		char peeked;
		int pending = 0;
		/* in this order: what is there to peek at stays there */
		if (recv(fd, &peeked, 1, MSG_PEEK | MSG_DONTWAIT) == 1 && !ioctl(fd, FIONREAD, &pending) && !pending)
			hidden++;
		ssize_t n = recv(fd, input, sizeof input, MSG_DONTWAIT);
		if (n == 0)
			break;
		if (n > 0)
			got += n;
		else if (errno == EAGAIN)
			wait_for(fd, POLLIN);
		else
			fail("receiving");
	}
	tally(hidden, 0);
}

static void splice_server(int listener)
{
	char request;
	int fd = answer_with_bytes(listener);
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

static void hold(void)
{
	char byte;
	if (!opt.hold)
		return;
	if (write(STDOUT_FILENO, "\n", 1) != 1)
		fail("saying that the connection is held");
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
}

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
	hold();
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
		if (i == opt.count - 1)
			hold();
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

/* Of IPv4, then of IPv6. */
static void name_original(int fd, volatile char (*out)[80])
{
	struct sockaddr_storage a;
	const int levels[2] = { IPPROTO_IP, IPPROTO_IPV6 };
	const socklen_t sizes[2] = { sizeof(struct sockaddr_in), sizeof(struct sockaddr_in6) };
	for (int i = 0; i < 2; i++) {
		socklen_t size = sizes[i];
		memset(&a, 0, sizeof a);
		if (getsockopt(fd, levels[i], 80 /* SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST */, &a, &size))
			snprintf((char *)out[i], 80, "%s", strerrorname_np(errno));
		else
			name_address((char *)out[i], &a);
	}
}

static void addresses_server(int listener)
{
	char byte;
	struct sockaddr_storage a;
	int fd = accept_one(listener);
	name_address((char *)shared->server_accepted, &accepted_from);
	name_original(fd, shared->original);
	socklen_t size = sizeof a;
	if (!getpeername(fd, (void *)&a, &size))
		name_address((char *)shared->server_peer, &a);
	if (read_all(fd, opt.server.blocking, &byte, 1) == 1)
		write_all(fd, &byte, 1);
	size = sizeof a;
	if (!getpeername(fd, (void *)&a, &size))
		name_address((char *)shared->server_later, &a);
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
	name_original(fd, shared->client_original);
	write_all(fd, &byte, 1);
	tally(read_all(fd, opt.client.blocking, &byte, 1), 1);
	hold();
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
	{ "hidden", hidden_server, hidden_client, { false, false }, true },
	{ "splice", splice_server, splice_client, { false, false }, false },
	{ "ping-pong", ping_server, ping_client, { false, false }, true },
	{ "churn", churn_server, churn_client, { false, false }, true },
	{ "addresses", addresses_server, addresses_client, { false, false }, false },
};
