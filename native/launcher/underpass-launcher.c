/*
 * The program of the DaemonSet's container `envoy`: starts Envoy when the node's agent asks for it, and is its parent, so that
 * Envoy outlives the agent and its container. It takes no part in anything else: pods' traffic, configuration and metrics are
 * between the agent and Envoy.
 *
 * underpass-launcher --socket PATH [--envoy PATH] [--grace SECONDS] [--drain SECONDS]
 *
 * What a peer can ask, one request a connection: words, each ended by a NUL, then the end of the stream.
 *   status                                     every process that runs or ended lately
 *   start [cgroup=DIR] [admin=PATH] -- ARG...   Envoy with these arguments, in that cgroup; PATH is its admin interface
 * The answer is lines of text:
 *   ok
 *   launcher PID START-TIME
 *   running PID START-TIME current|replaced     `replaced`: it executes another file than a new one would
 *   ended PID START-TIME exit CODE|signal NUMBER
 *   started PID START-TIME
 * or `error: WHY` alone. START-TIME is field 22 of /proc/PID/stat. Which file is executed is this program's own option, never the
 * peer's. Peers are root or whoever runs this (SO_PEERCRED); others are closed without an answer.
 *
 * On SIGTERM it stays for `--grace` seconds as long as an Envoy runs: the next pod's Envoy takes over its listeners and ends it
 * (hot restart). What nobody took over is drained (`--drain` seconds: HTTP clients are told to close, listeners stay open until then) and ended.
 * A second SIGTERM ends it at once. Should this program die, Envoy does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_REQUEST (32 << 10)
#define MAX_WORDS 128
#define MAX_ANSWER 4096
/* An agent that loads its programs into the kernel says nothing for many seconds. */
#define REQUEST_MS 20000
#define DRAIN_REQUEST_MS 2000
#define KILL_AFTER_MS 5000
/* Envoy's own limit: the third ends the first. */
#define MAX_RUNNING 3
#define MAX_CHILDREN 8
#define MAX_SECONDS 3600

struct child {
	pid_t pid; /* 0: a free place */
	unsigned long long start_time;
	bool running, drained;
	int status; /* of waitpid */
	char admin[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

static struct child children[MAX_CHILDREN];
static const char *binary;
static long grace_ms = 60000, drain_ms = 45000;
static sigset_t original_mask;

static long long now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fprintf(stderr, "underpass-launcher: ");
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
}

static void die(const char *action, const char *object)
{
	say("%s %s: %s", action, object, strerror(errno));
	exit(1);
}

static unsigned long long start_time_of(pid_t pid)
{
	char path[64], stat[1024];
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, stat, sizeof(stat) - 1);
	if (fd >= 0)
		close(fd);
	if (length <= 0)
		return 0;
	stat[length] = 0;
	/* The command's name, in parentheses, may hold blanks and parentheses; behind it comes field 3. */
	char *at = strrchr(stat, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at + 1, NULL, 10) : 0;
}

static int running_count(void)
{
	int count = 0;
	for (int i = 0; i < MAX_CHILDREN; i++)
		count += children[i].pid && children[i].running;
	return count;
}

static void reap(void)
{
	int status;
	for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
		for (int i = 0; i < MAX_CHILDREN; i++) {
			struct child *child = &children[i];
			if (child->pid != pid || !child->running)
				continue;
			child->running = false;
			child->status = status;
			if (WIFSIGNALED(status))
				say("Envoy %d was ended by signal %d", pid, WTERMSIG(status));
			else
				say("Envoy %d ended with code %d", pid, WEXITSTATUS(status));
		}
	}
}

/* A free place, or that of the process that ended first. */
static struct child *place(void)
{
	struct child *oldest = NULL;
	for (int i = 0; i < MAX_CHILDREN; i++) {
		if (!children[i].pid)
			return &children[i];
		if (!children[i].running && (!oldest || children[i].start_time < oldest->start_time))
			oldest = &children[i];
	}
	return oldest;
}


/* What went wrong between fork and exec, through a pipe that exec closes. */
struct failure {
	char step[24];
	int error;
};

static void become_envoy(pid_t parent, const char *cgroup, char **arguments, struct failure *failure)
{
	struct rlimit files;
	sigprocmask(SIG_SETMASK, &original_mask, NULL);
	/* Envoy asks for SIGTERM itself; this is for the time before. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
		_exit(1);
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (cgroup) {
		char path[4096];
		strcpy(failure->step, "joining the cgroup");
		snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1) {
			failure->error = errno;
			return;
		}
		close(fd);
	}
	strcpy(failure->step, "executing");
	execv(binary, arguments);
	failure->error = errno;
}

/* Answers `started …`, or why not. */
static void start(char **words, int count, char *answer)
{
	const char *cgroup = NULL, *admin = "";
	int at = 1;
	for (; at < count && strcmp(words[at], "--"); at++) {
		if (!strncmp(words[at], "cgroup=/", 8) && strlen(words[at]) < 4000) {
			cgroup = words[at] + 7;
		} else if (!strncmp(words[at], "admin=/", 7) && strlen(words[at] + 6) < sizeof(children[0].admin)) {
			admin = words[at] + 6;
		} else {
			snprintf(answer, MAX_ANSWER, "error: %.100s: expected cgroup=DIR or admin=PATH, and -- before Envoy's arguments\n", words[at]);
			return;
		}
	}
	if (at == count) {
		snprintf(answer, MAX_ANSWER, "error: start without --\n");
		return;
	}
	struct child *child = place();
	if (!child || running_count() >= MAX_RUNNING) {
		snprintf(answer, MAX_ANSWER, "error: %d Envoys run already\n", running_count());
		return;
	}
	int ends[2];
	if (pipe2(ends, O_CLOEXEC)) {
		snprintf(answer, MAX_ANSWER, "error: making a pipe: %s\n", strerror(errno));
		return;
	}
	/* In place of "--" stands the program's name. */
	words[at] = (char *)binary;
	struct failure failure = { .step = "", .error = 0 };
	pid_t parent = getpid(), pid = fork();
	if (pid == 0) {
		become_envoy(parent, cgroup, words + at, &failure);
		if (write(ends[1], &failure, sizeof(failure)) < 0)
			_exit(1);
		_exit(1);
	}
	int error = errno;
	close(ends[1]);
	bool failed = pid > 0 && read(ends[0], &failure, sizeof(failure)) == sizeof(failure);
	close(ends[0]);
	if (pid < 0) {
		snprintf(answer, MAX_ANSWER, "error: making a process: %s\n", strerror(error));
		return;
	}
	if (failed) {
		waitpid(pid, NULL, 0);
		snprintf(answer, MAX_ANSWER, "error: %s %.3000s: %s\n", failure.step, strcmp(failure.step, "executing") ? cgroup : binary, strerror(failure.error));
		return;
	}
	*child = (struct child){ .pid = pid, .start_time = start_time_of(pid), .running = true };
	strcpy(child->admin, admin);
	say("Envoy %d started", pid);
	snprintf(answer, MAX_ANSWER, "started %d %llu\n", pid, child->start_time);
}

static const char *executed(pid_t pid)
{
	char path[64];
	struct stat is, would;
	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	bool same = !stat(path, &is) && !stat(binary, &would) && is.st_dev == would.st_dev && is.st_ino == would.st_ino && is.st_size == would.st_size &&
		    is.st_mtim.tv_sec == would.st_mtim.tv_sec && is.st_mtim.tv_nsec == would.st_mtim.tv_nsec;
	return same ? "current" : "replaced";
}

static void status(char *answer)
{
	int n = snprintf(answer, MAX_ANSWER, "ok\nlauncher %d %llu\n", getpid(), start_time_of(getpid()));
	for (int i = 0; i < MAX_CHILDREN; i++) {
		const struct child *child = &children[i];
		if (!child->pid)
			continue;
		if (child->running)
			n += snprintf(answer + n, MAX_ANSWER - n, "running %d %llu %s\n", child->pid, child->start_time, executed(child->pid));
		else
			n += snprintf(answer + n, MAX_ANSWER - n, "ended %d %llu %s %d\n", child->pid, child->start_time, WIFSIGNALED(child->status) ? "signal" : "exit",
				      WIFSIGNALED(child->status) ? WTERMSIG(child->status) : WEXITSTATUS(child->status));
	}
}

/* Until the peer has said all, in time and length. Returns the length, -1 if it did not. */
static ssize_t read_request(int fd, char *request)
{
	long long deadline = now_ms() + REQUEST_MS;
	size_t length = 0;
	for (;;) {
		struct pollfd waiting = { .fd = fd, .events = POLLIN };
		long long left = deadline - now_ms();
		if (left <= 0 || poll(&waiting, 1, left) <= 0)
			return -1;
		ssize_t n = recv(fd, request + length, MAX_REQUEST - length, MSG_DONTWAIT);
		if (n == 0)
			return length;
		if (n < 0 && errno != EAGAIN)
			return -1;
		length += n > 0 ? n : 0;
		if (length == MAX_REQUEST)
			return -1;
	}
}

static bool is_trusted(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size))
		return false;
	if (peer.uid == 0 || peer.uid == geteuid())
		return true;
	say("a process of user %u was sent away", peer.uid);
	return false;
}

static void serve(int listener, bool leaving)
{
	static char request[MAX_REQUEST + 1], answer[MAX_ANSWER];
	char *words[MAX_WORDS + 1];
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), count = 0;
	if (fd < 0)
		return;
	ssize_t length = is_trusted(fd) ? read_request(fd, request) : -1;
	if (length <= 0 || request[length - 1]) {
		close(fd);
		return;
	}
	for (ssize_t at = 0; at < length && count <= MAX_WORDS; at += strlen(request + at) + 1)
		if (count++ < MAX_WORDS)
			words[count - 1] = request + at;
	if (count > MAX_WORDS) {
		snprintf(answer, MAX_ANSWER, "error: more than %d words\n", MAX_WORDS);
	} else {
		words[count] = NULL;
		if (!strcmp(words[0], "status") && count == 1)
			status(answer);
		else if (!strcmp(words[0], "start") && leaving)
			snprintf(answer, MAX_ANSWER, "error: this launcher is ending\n");
		else if (!strcmp(words[0], "start"))
			start(words, count, answer);
		else
			snprintf(answer, MAX_ANSWER, "error: %.100s: expected status or start\n", words[0]);
	}
	send(fd, answer, strlen(answer), MSG_NOSIGNAL | MSG_DONTWAIT);
	close(fd);
}

/* By its admin interface, if whoever listens there is this very process: a successor has the same path. */
static void drain(struct child *child)
{
	static const char request[] = "POST /drain_listeners?graceful&skip_exit HTTP/1.1\r\nhost: launcher\r\nconnection: close\r\n\r\n";
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval limit = { DRAIN_REQUEST_MS / 1000, 0 };
	struct ucred peer;
	socklen_t size = sizeof(peer);
	child->drained = true;
	int fd = *child->admin ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
	if (fd < 0)
		return;
	strcpy(address.sun_path, child->admin);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (!connect(fd, (struct sockaddr *)&address, sizeof(address)) && !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) && peer.pid == child->pid &&
	    send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) > 0) {
		char answer[256];
		if (recv(fd, answer, sizeof(answer), 0) > 0)
			say("nobody took over from Envoy %d: it drains for %ld s", child->pid, drain_ms / 1000);
	}
	close(fd);
}

static void signal_all(int number)
{
	for (int i = 0; i < MAX_CHILDREN; i++)
		if (children[i].pid && children[i].running)
			kill(children[i].pid, number);
}

/* What is due `since` ms after the first SIGTERM. Returns the ms until something else is. */
static int leave(long long since)
{
	if (since < grace_ms)
		return grace_ms - since;
	for (int i = 0; i < MAX_CHILDREN; i++)
		if (children[i].pid && children[i].running && !children[i].drained)
			drain(&children[i]);
	if (since < grace_ms + drain_ms)
		return grace_ms + drain_ms - since;
	signal_all(since < grace_ms + drain_ms + KILL_AFTER_MS ? SIGTERM : SIGKILL);
	return 1000;
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(address.sun_path)) {
		errno = ENAMETOOLONG;
		die("listening on", path);
	}
	strcpy(address.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), asking = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || asking < 0)
		die("making a socket for", path);
	/* What an earlier container left is nobody's. */
	if (!connect(asking, (struct sockaddr *)&address, sizeof(address))) {
		errno = EADDRINUSE;
		die("listening on", path);
	}
	close(asking);
	unlink(path);
	mode_t mask = umask(0177);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 16))
		die("listening on", path);
	umask(mask);
	return fd;
}

static long seconds(const char *option, const char *text)
{
	char *end;
	long value = strtol(text, &end, 10);
	if (end == text || *end || value < 0 || value > MAX_SECONDS) {
		say("%s %s: expected seconds, 0 to %d", option, text, MAX_SECONDS);
		exit(2);
	}
	return value * 1000;
}

/* build/envoy/envoy beside this program. */
static const char *default_binary(void)
{
	static char path[4096];
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - sizeof("envoy/envoy"));
	if (length <= 0)
		die("reading", "/proc/self/exe");
	path[length] = 0;
	strcpy(strrchr(path, '/') + 1, "envoy/envoy");
	return path;
}

int main(int argc, char **argv)
{
	enum { SOCKET = 256, ENVOY, GRACE, DRAIN, HELP };
	static const struct option options[] = {
		{ "socket", required_argument, NULL, SOCKET }, { "envoy", required_argument, NULL, ENVOY }, { "grace", required_argument, NULL, GRACE },
		{ "drain", required_argument, NULL, DRAIN },   { "help", no_argument, NULL, HELP },	   { 0 },
	};
	const char *path = NULL;
	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		switch (option) {
		case SOCKET: path = optarg; break;
		case ENVOY: binary = optarg; break;
		case GRACE: grace_ms = seconds("--grace", optarg); break;
		case DRAIN: drain_ms = seconds("--drain", optarg); break;
		case HELP:
			printf("usage: underpass-launcher --socket PATH [--envoy PATH] [--grace SECONDS] [--drain SECONDS]\n\n"
			       "Starts Envoy when the node's agent asks for it by the socket, and keeps it while the agent is away.\n"
			       "  --socket PATH    where to listen; root and this program's own user are served\n"
			       "  --envoy PATH     what is started (default: envoy/envoy beside this program)\n"
			       "  --grace SECONDS  after SIGTERM: how long another Envoy has to take over the listeners (default 60)\n"
			       "  --drain SECONDS  then: how long connections have to end (default 45)\n");
			return 0;
		default: return 2;
		}
	}
	if (!path || optind < argc) {
		say("%s", path ? "expected no argument" : "--socket is missing");
		return 2;
	}
	if (!binary)
		binary = default_binary();
	if (access(binary, X_OK))
		die("finding Envoy at", binary);

	sigset_t handled;
	sigemptyset(&handled);
	sigaddset(&handled, SIGCHLD);
	sigaddset(&handled, SIGTERM);
	sigaddset(&handled, SIGINT);
	sigprocmask(SIG_BLOCK, &handled, &original_mask);
	int signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK), listener = listen_at(path);
	if (signals < 0)
		die("following", "signals");
	/* Envoy's standard input; its output is this program's. */
	int nothing = open("/dev/null", O_RDONLY);
	if (nothing < 0 || dup2(nothing, 0) < 0)
		die("opening", "/dev/null");
	if (nothing > 2)
		close(nothing);
	say("waiting for the agent on %s", path);

	long long leaving_since = 0;
	for (int wait_ms = -1;;) {
		struct pollfd events[] = { { .fd = signals, .events = POLLIN }, { .fd = listener, .events = POLLIN } };
		poll(events, 2, wait_ms);
		struct signalfd_siginfo signal;
		while (read(signals, &signal, sizeof(signal)) == sizeof(signal)) {
			if (signal.ssi_signo == SIGCHLD)
				continue;
			if (leaving_since) {
				for (int i = 0; i < MAX_CHILDREN; i++)
					children[i].drained = true;
				grace_ms = drain_ms = 0;
			} else {
				leaving_since = now_ms();
				if (running_count())
					say("ending; its Envoy stays until another has taken over, at most %ld s", grace_ms / 1000);
			}
		}
		reap();
		if (leaving_since && !running_count())
			break;
		wait_ms = leaving_since ? leave(now_ms() - leaving_since) : -1;
		if (events[1].revents & POLLIN)
			serve(listener, leaving_since != 0);
	}
	unlink(path);
	return 0;
}
