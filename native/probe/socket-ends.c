/*
 * Sockets by command, for exchanges whose every step is somebody else's to say: what is sent, when, and how it ends. The HTTP
 * part of the agent's self-test stands on it, and the tests of the HTTP fast path.
 *
 * A command is a line of words on stdin, its answer a line of KEY=VALUE, parted by tabs, on stdout. All sockets are
 * non-blocking, as event-driven programs have them.
 *   listen NAME ADDRESS PORT | accept NAME LISTENER [SECONDS] | connect NAME ADDRESS PORT [MARK | -] [ADDRESS PORT to bind]
 *   send NAME more|- BYTES      so many bytes follow the line; `more`: MSG_MORE
 *   receive NAME COUNT [SECONDS] up to COUNT bytes, the end of the stream, an error, or so long: `data=N`, and N bytes follow
 *   empty NAME                  sends nothing, and so a message of no bytes
 *   again NAME ADDRESS PORT     connect(AF_UNSPEC), then to another: the same socket
 *   blocking NAME true|false | port NAME | shutdown NAME | close NAME | reset NAME
 * `error` is what the socket says, `failure` what is wrong with the command, `timeout` that SECONDS (default 5) were over.
 */
#include "sockets.h"

#include <stdarg.h>

#define MAX_SOCKETS 256
#define MAX_WORDS 8
#define MAX_DATA (64 << 20)

static struct {
	char name[32];
	int fd;
} sockets[MAX_SOCKETS];

static char *words[MAX_WORDS];
static int words_used;
static char *data;

static void answer(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void answer(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
}

static const char *word(int at)
{
	return at < words_used && strcmp(words[at], "-") ? words[at] : NULL;
}

static int slot_of(const char *name)
{
	for (int i = 0; name && i < MAX_SOCKETS; i++)
		if (!strcmp(sockets[i].name, name))
			return i;
	return -1;
}

/* Tells the socket's own port, or its peer's. */
static void keep(const char *name, int fd, bool of_peer)
{
	int at = slot_of(name);
	if (at >= 0)
		close(sockets[at].fd);
	else
		at = slot_of("");
	if (at < 0 || strlen(name) >= sizeof sockets[at].name) {
		close(fd);
		return answer("failure=no room for a socket %s", name);
	}
	strcpy(sockets[at].name, name);
	sockets[at].fd = fd;
	struct sockaddr_storage name_of;
	socklen_t size = sizeof name_of;
	if (of_peer)
		getpeername(fd, (void *)&name_of, &size);
	else
		getsockname(fd, (void *)&name_of, &size);
	/* At the same place in both families. */
	answer("port=%d", ntohs(((struct sockaddr_in *)&name_of)->sin_port));
}

static bool ready(int fd, short events, double seconds)
{
	struct pollfd p = { fd, events, 0 };
	return seconds >= 0 && poll(&p, 1, seconds * 1000 + 0.999) > 0;
}

static double seconds_of(int at)
{
	return word(at) ? atof(word(at)) : 5;
}

static int made(const struct sockaddr_storage *address)
{
	int fd = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static void do_listen(void)
{
	struct sockaddr_storage a;
	socklen_t size = address_of(words[2], atoi(words[3]), &a);
	int fd = made(&a), one = 1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (void *)&a, size) || listen(fd, 64)) {
		answer("failure=listening: %s", strerror(errno));
		close(fd);
		return;
	}
	keep(words[1], fd, false);
}

static void do_accept(void)
{
	int listener = slot_of(words[2]), one = 1;
	if (listener < 0)
		return answer("failure=no socket %s", words[2]);
	if (!ready(sockets[listener].fd, POLLIN, seconds_of(3)))
		return answer("error=nobody connects");
	int fd = accept4(sockets[listener].fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return answer("error=%s", strerror(errno));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	keep(words[1], fd, true);
}

/* Waits for a connection under way: 0, or why there is none. */
static int connected(int fd)
{
	int error = 0;
	socklen_t size = sizeof error;
	if (!ready(fd, POLLOUT, 5))
		return ETIMEDOUT;
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
	return error;
}

static void do_connect(void)
{
	struct sockaddr_storage a, from;
	socklen_t size = address_of(words[2], atoi(words[3]), &a);
	int fd = made(&a), error = 0;
	uint32_t mark = word(4) ? strtoul(word(4), NULL, 0) : 0;
	if (word(5) && word(6) && bind(fd, (void *)&from, address_of(word(5), atoi(word(6)), &from)))
		error = errno;
	if (!error && word(4) && setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark))
		error = errno;
	if (!error && connect(fd, (void *)&a, size) && errno != EINPROGRESS)
		error = errno;
	if (!error)
		error = connected(fd);
	if (!error)
		return keep(words[1], fd, false);
	close(fd);
	answer("error=%s", strerror(error));
}

static void do_send(int fd)
{
	size_t size = atoll(words[3]), done = 0;
	uint64_t end = now_ns() + 5000000000ull;
	int flags = MSG_NOSIGNAL | (word(2) ? MSG_MORE : 0);
	while (done < size && now_ns() < end) {
		ssize_t n = send(fd, data + done, size - done, flags);
		if (n >= 0)
			done += n;
		else if (errno == EAGAIN)
			ready(fd, POLLOUT, 1);
		else
			return answer("error=%s", strerror(errno));
	}
	answer("%s", done < size ? "error=timeout" : "");
}

static void do_receive(int fd)
{
	size_t size = atoll(words[2]), done = 0;
	uint64_t end = now_ns() + (uint64_t)(seconds_of(3) * 1e9);
	const char *why = "";
	char error[128];
	if (size > MAX_DATA)
		return answer("failure=receive: at most %d bytes", MAX_DATA);
	while (done < size) {
		uint64_t now = now_ns();
		if (now >= end || !ready(fd, POLLIN, (end - now) / 1e9)) {
			why = "timeout=1\t";
			break;
		}
		ssize_t n = recv(fd, data + done, size - done, 0);
		if (n > 0) {
			done += n;
		} else if (n == 0) {
			why = "end=1\t";
			break;
		} else if (errno != EAGAIN) {
			snprintf(error, sizeof error, "error=%s\t", strerror(errno));
			why = error;
			break;
		}
	}
	answer("%sdata=%zu", why, done);
	fwrite(data, 1, done, stdout);
}

static void do_again(int fd)
{
	struct sockaddr_storage a;
	struct sockaddr none = { .sa_family = AF_UNSPEC };
	socklen_t size = address_of(words[2], atoi(words[3]), &a);
	int error = 0;
	if (connect(fd, &none, sizeof none) || (connect(fd, (void *)&a, size) && errno != EINPROGRESS))
		error = errno;
	if (!error)
		error = connected(fd);
	if (error)
		answer("error=%s", strerror(error));
	else
		answer(" ");
}

static void do_blocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	fcntl(fd, F_SETFL, !strcmp(words[2], "true") ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
	answer(" ");
}

static void do_empty(int fd)
{
	answer("sent=%zd", send(fd, "", 0, MSG_NOSIGNAL));
}

static void do_port(int fd)
{
	struct sockaddr_storage self;
	socklen_t size = sizeof self;
	getsockname(fd, (void *)&self, &size);
	answer("port=%d", ntohs(((struct sockaddr_in *)&self)->sin_port));
}

static void do_shutdown(int fd)
{
	if (shutdown(fd, SHUT_WR))
		answer("error=%s", strerror(errno));
	else
		answer(" ");
}

static void do_close(int fd)
{
	close(fd);
	sockets[slot_of(words[1])].name[0] = 0;
	answer(" ");
}

static void do_reset(int fd)
{
	struct linger now = { 1, 0 };
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	do_close(fd);
}

static const struct {
	const char *name;
	int words; /* with the command's own, at least */
	void (*make)(void), (*use)(int);
} commands[] = {
	{ "listen", 4, do_listen, NULL }, { "accept", 3, do_accept, NULL }, { "connect", 4, do_connect, NULL },
	{ "send", 4, NULL, do_send }, { "receive", 3, NULL, do_receive }, { "empty", 2, NULL, do_empty }, { "again", 4, NULL, do_again },
	{ "blocking", 3, NULL, do_blocking }, { "port", 2, NULL, do_port }, { "shutdown", 2, NULL, do_shutdown },
	{ "close", 2, NULL, do_close }, { "reset", 2, NULL, do_reset },
};

static void execute(void)
{
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
		if (strcmp(commands[i].name, words[0]))
			continue;
		if (words_used < commands[i].words)
			return answer("failure=%s: too few words", words[0]);
		if (commands[i].make)
			return commands[i].make();
		int at = slot_of(words[1]);
		if (at < 0)
			return answer("failure=no socket %s", words[1]);
		return commands[i].use(sockets[at].fd);
	}
	answer("failure=no command %s", words[0]);
}

int main(void)
{
	char line[1024];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* address_of() and what else the probe's cases share end the process by fail(), which notes why. */
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	data = mmap(NULL, MAX_DATA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shared == MAP_FAILED || data == MAP_FAILED)
		return 2;
	while (fgets(line, sizeof line, stdin)) {
		words_used = 0;
		for (char *each = strtok(line, " \n"); each && words_used < MAX_WORDS; each = strtok(NULL, " \n"))
			words[words_used++] = each;
		if (!words_used)
			continue;
		if (!strcmp(words[0], "send") && words_used >= 4) {
			long long size = atoll(words[3]);
			if (size < 0 || size > MAX_DATA || (long long)fread(data, 1, size, stdin) != size)
				return 2;
		}
		execute();
		fflush(stdout);
	}
	return 0;
}
