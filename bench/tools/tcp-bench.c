/*
 * Load for the comparison of modes, all of it event-driven. See usage() below; the result is one line of JSON on stdout.
 */
#define _GNU_SOURCE
#include "tcp-bench.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct options options = {
	.listen = "::",
	.path = "/",
	.method = "GET",
	.connections = 1,
	.cpu = -1,
	.request_bytes = 64,
	.timeout_s = 5,
};
struct results results;
volatile bool stop_requested;

static const char usage_text[] =
	"tcp-bench server    [--listen ADDRESS] --port N\n"
	"tcp-bench ping-pong --connect HOST:PORT [--size BYTES] [--response-size BYTES]\n"
	"tcp-bench bulk      --connect HOST:PORT [--size BYTES]\n"
	"tcp-bench http      --connect HOST:PORT [--path P] [--host NAME] [--method M] [--header 'N: V']...\n"
	"                    [--body BYTES] [--vary] [--other-path P --other-each N] [--tally body|header:NAME]\n"
	"Clients: [--connections N] [--new-connection-each | --requests-per-connection N] [--duration S] [--count N]\n"
	"         [--warm-connections N] [--warm-up S] [--warm-requests N] [--wait] [--timeout S] [--pause S] [--progress S]\n"
	"         [--cgroup PATH]...   All: [--cpu N]\n"
	"  --body              of each request, with its Content-Length\n"
	"  --vary              numbers each connection's requests in a header, so that no head is like the one before\n"
	"  --other-path        what each Nth request of a connection asks for instead\n"
	"  --warm-connections  opens that many short connections first, one exchange each\n"
	"  --warm-up           then runs so long without counting\n"
	"  --warm-requests     and until each connection has had so many answers, or for the length of --timeout\n"
	"  --wait              then lets what is under way end, writes a line of JSON, and measures after the end of its input\n"
	"  --pause             between an answer and the next request of the same connection\n"
	"  --progress          a line of JSON every so often\n"
	"  --cgroup            CPU time that this cgroup used while measuring\n"
	"Without --duration and --count it runs until SIGINT or SIGTERM. Failures are counted, not fatal: exit 0 when it ran,\n"
	"2 when it could not.\n";

static void usage(const char *problem, const char *argument)
{
	fprintf(stderr, "tcp-bench: %s%s%s\n%s", problem, argument ? " " : "", argument ? argument : "", usage_text);
	exit(2);
}

void die(const char *action, const char *object)
{
	fprintf(stderr, "tcp-bench: %s %s: %s\n", action, object, strerror(errno));
	exit(2);
}

uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int epoll_or_die(void)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);
	if (fd < 0)
		die("opening", "epoll");
	return fd;
}

void resolve(struct sockaddr_storage *address, socklen_t *size)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
	int error = getaddrinfo(options.host, options.port, &hints, &found);
	if (error) {
		fprintf(stderr, "tcp-bench: resolving %s port %s: %s\n", options.host, options.port, gai_strerror(error));
		exit(2);
	}
	memcpy(address, found->ai_addr, found->ai_addrlen);
	*size = found->ai_addrlen;
	freeaddrinfo(found);
}

static void on_signal(int signal)
{
	(void)signal;
	stop_requested = true;
}

static double number(const char *name, const char *text, double min, double max)
{
	char *end;
	errno = 0;
	double value = strtod(text, &end);
	if (errno || end == text || *end || !(value >= min && value <= max))
		usage("not a number that can be used:", name);
	return value;
}

/* HOST:PORT, an IPv6 address in brackets. */
static void split_target(char *text)
{
	char *colon = strrchr(text, ':');
	if (!colon || colon == text || !colon[1])
		usage("expected HOST:PORT:", text);
	options.authority = strdup(text);
	*colon = 0;
	options.port = colon + 1;
	if (*text == '[' && colon[-1] == ']') {
		colon[-1] = 0;
		text++;
	}
	options.host = text;
}

static void parse(int argc, char **argv)
{
	enum { CONNECT = 256, LISTEN, PORT, SIZE, RESPONSE_SIZE, PATH, HOST, METHOD, HEADER, BODY, VARY, OTHER_PATH, OTHER_EACH, NEW_EACH, REQUESTS_EACH, TALLY,
	       CONNECTIONS, DURATION, COUNT, WARM_REQUESTS, WAIT, WARM_CONNECTIONS, WARM_UP, TIMEOUT, PAUSE, PROGRESS, CGROUP, CPU, HELP };
	static const struct option known[] = {
		{ "connect", 1, 0, CONNECT }, { "listen", 1, 0, LISTEN }, { "port", 1, 0, PORT }, { "size", 1, 0, SIZE },
		{ "response-size", 1, 0, RESPONSE_SIZE }, { "path", 1, 0, PATH }, { "host", 1, 0, HOST }, { "method", 1, 0, METHOD },
		{ "header", 1, 0, HEADER }, { "new-connection-each", 0, 0, NEW_EACH }, { "tally", 1, 0, TALLY },
		{ "body", 1, 0, BODY }, { "vary", 0, 0, VARY }, { "other-path", 1, 0, OTHER_PATH }, { "other-each", 1, 0, OTHER_EACH },
		{ "requests-per-connection", 1, 0, REQUESTS_EACH }, { "warm-requests", 1, 0, WARM_REQUESTS }, { "wait", 0, 0, WAIT },
		{ "connections", 1, 0, CONNECTIONS }, { "duration", 1, 0, DURATION }, { "count", 1, 0, COUNT },
		{ "warm-connections", 1, 0, WARM_CONNECTIONS }, { "warm-up", 1, 0, WARM_UP }, { "timeout", 1, 0, TIMEOUT },
		{ "pause", 1, 0, PAUSE }, { "progress", 1, 0, PROGRESS }, { "cgroup", 1, 0, CGROUP }, { "cpu", 1, 0, CPU },
		{ "help", 0, 0, HELP }, { 0 },
	};
	const char *authority = NULL;
	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
		fputs(usage_text, stdout);
		exit(0);
	}
	static const char *const modes[] = { "server", "ping-pong", "bulk", "http" };
	int mode = -1;
	for (int i = 0; argc > 1 && i < 4; i++)
		if (!strcmp(argv[1], modes[i]))
			mode = i;
	if (mode < 0)
		usage("expected server, ping-pong, bulk or http", NULL);
	options.mode = mode;
	if (mode == MODE_BULK)
		options.request_bytes = 64 << 10;
	for (int option; (option = getopt_long(argc - 1, argv + 1, "", known, NULL)) != -1;) {
		switch (option) {
		case CONNECT: split_target(optarg); break;
		case LISTEN: options.listen = optarg; break;
		case PORT: options.port = optarg; break;
		case SIZE: options.request_bytes = number("--size", optarg, 8, 64 << 20); break;
		case RESPONSE_SIZE: options.response_bytes = number("--response-size", optarg, 8, 64 << 20); break;
		case PATH: options.path = optarg; break;
		case HOST: authority = optarg; break;
		case METHOD: options.method = optarg; break;
		case HEADER:
			if (options.header_count == MAX_HEADERS || !strchr(optarg, ':'))
				usage("too many headers, or one without a colon:", optarg);
			options.headers[options.header_count++] = optarg;
			break;
		case BODY: options.body_bytes = number("--body", optarg, 1, 1 << 20); break;
		case VARY: options.vary = true; break;
		case OTHER_PATH: options.other_path = optarg; break;
		case OTHER_EACH: options.other_each = number("--other-each", optarg, 2, 1e6); break;
		case REQUESTS_EACH: options.requests_per_connection = number("--requests-per-connection", optarg, 1, 1e9); break;
		case WARM_REQUESTS: options.warm_requests = number("--warm-requests", optarg, 0, 1e6); break;
		case WAIT: options.wait = true; break;
		case NEW_EACH: options.new_connection_each = true; break;
		case TALLY:
			if (!strcmp(optarg, "body"))
				options.tally_body = true;
			else if (!strncmp(optarg, "header:", 7))
				options.tally_header = optarg + 7;
			else
				usage("--tally: expected body or header:NAME, not", optarg);
			break;
		case CONNECTIONS: options.connections = number("--connections", optarg, 1, 65000); break;
		case DURATION: options.duration_s = number("--duration", optarg, 0.01, 86400); break;
		case COUNT: options.count = number("--count", optarg, 1, 1e15); break;
		case WARM_CONNECTIONS: options.warm_connections = number("--warm-connections", optarg, 0, 1e6); break;
		case WARM_UP: options.warm_up_s = number("--warm-up", optarg, 0, 3600); break;
		case TIMEOUT: options.timeout_s = number("--timeout", optarg, 0.01, 3600); break;
		case PAUSE: options.pause_s = number("--pause", optarg, 0, 3600); break;
		case PROGRESS: options.progress_s = number("--progress", optarg, 0, 3600); break;
		case CGROUP:
			if (options.cgroup_count == MAX_CGROUPS)
				usage("too many cgroups", NULL);
			options.cgroups[options.cgroup_count++] = optarg;
			break;
		case CPU: options.cpu = number("--cpu", optarg, 0, CPU_SETSIZE - 1); break;
		case HELP: fputs(usage_text, stdout); exit(0);
		default: exit(2);
		}
	}
	if (optind < argc - 1)
		usage("unexpected argument", argv[1 + optind]);
	if (mode == MODE_SERVER ? !options.port : !options.host)
		usage(mode == MODE_SERVER ? "--port is missing" : "--connect is missing", NULL);
	if (!options.other_path != !options.other_each)
		usage("--other-path and --other-each belong together", NULL);
	if (mode != MODE_HTTP && (options.body_bytes || options.vary || options.other_path))
		usage("--body, --vary and --other-path are of http", NULL);
	if (mode == MODE_BULK && (options.wait || options.warm_requests || options.requests_per_connection))
		usage("bulk has neither --wait nor numbers of requests", NULL);
	if (!options.response_bytes)
		options.response_bytes = options.request_bytes;
	if (authority)
		options.authority = authority;
}

static void print_string(const char *text)
{
	putchar('"');
	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		if (*c == '"' || *c == '\\')
			printf("\\%c", *c);
		else if (*c < ' ' || *c > 126)
			printf("\\u%04x", *c);
		else
			putchar(*c);
	}
	putchar('"');
}

static uint64_t failures(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < FAILURES; i++)
		sum += results.failures[i];
	return sum;
}

void print_progress(void)
{
	printf("{\"final\":false,\"requests\":%llu,\"failed\":%llu,\"first_failure\":", (unsigned long long)results.requests, (unsigned long long)failures());
	print_string(results.first_failure);
	printf("}\n");
	fflush(stdout);
}

static void print_results(void)
{
	static const char *const modes[] = { "server", "ping-pong", "bulk", "http" };
	static const char *const kinds[] = { "connect", "closed", "timeout", "status", "malformed" };
	static const struct { const char *name; double quantile; } quantiles[] = { { "p50", 0.5 }, { "p90", 0.9 }, { "p99", 0.99 }, { "p999", 0.999 } };
	const struct histogram *h = &results.latency;
	const char *separator = "";
	double seconds = results.seconds > 0 ? results.seconds : 1e-9;
	printf("{\"final\":true,\"mode\":\"%s\",\"connections\":%d,\"seconds\":%.6f,\"requests\":%llu,\"requests_begun\":%llu,\"requests_per_second\":%.1f",
	       modes[options.mode], options.connections, results.seconds, (unsigned long long)results.requests,
	       (unsigned long long)results.requests_begun, results.requests / seconds);
	printf(",\"bytes_sent\":%llu,\"bytes_received\":%llu,\"connections_opened\":%llu,\"closed_by_server\":%llu",
	       (unsigned long long)results.bytes_sent, (unsigned long long)results.bytes_received, (unsigned long long)results.connections_opened,
	       (unsigned long long)results.closed_by_server);
	if (options.mode == MODE_BULK)
		printf(",\"bits_per_second\":%.0f", results.bytes_received * 8 / seconds);
	printf(",\"latency_us\":{\"count\":%llu,\"min\":%.2f,\"mean\":%.2f", (unsigned long long)h->count, h->min / 1e3, h->count ? h->sum / 1e3 / h->count : 0);
	for (unsigned i = 0; i < sizeof quantiles / sizeof *quantiles; i++)
		printf(",\"%s\":%.2f", quantiles[i].name, histogram_quantile(h, quantiles[i].quantile) / 1e3);
	printf(",\"max\":%.2f},\"failed\":%llu,\"failures\":{", h->max / 1e3, (unsigned long long)failures());
	for (int i = 0; i < FAILURES; i++)
		printf("%s\"%s\":%llu", i ? "," : "", kinds[i], (unsigned long long)results.failures[i]);
	printf("},\"first_failure\":");
	print_string(results.first_failure);
	printf(",\"statuses\":{");
	for (int i = 0; i < 600; i++)
		if (results.statuses[i]) {
			printf("%s\"%d\":%llu", separator, i, (unsigned long long)results.statuses[i]);
			separator = ",";
		}
	printf("},\"tally\":{");
	for (int i = 0; i < results.tally_count; i++) {
		if (i)
			putchar(',');
		print_string(results.tally[i].value);
		printf(":%llu", (unsigned long long)results.tally[i].count);
	}
	printf("},\"cgroup_usec\":{");
	for (int i = 0; i < options.cgroup_count; i++) {
		if (i)
			putchar(',');
		print_string(options.cgroups[i]);
		printf(":%llu", (unsigned long long)results.cgroup_usec[i]);
	}
	printf("},\"machine_usec\":%llu}\n", (unsigned long long)results.machine_usec);
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	struct sigaction action = { .sa_handler = on_signal };
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	struct rlimit files;
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (options.cpu >= 0) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(options.cpu, &set);
		if (sched_setaffinity(0, sizeof set, &set))
			die("binding to", "the CPU that --cpu names");
	}
	if (options.mode == MODE_SERVER)
		return run_server();
	if (options.mode == MODE_BULK)
		run_bulk();
	else
		run_load();
	print_results();
	return 0;
}
