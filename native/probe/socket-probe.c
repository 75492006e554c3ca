/*
 * Real sockets behaving in the ways that break short-circuits: run between two namespaces and two cgroups, one case an
 * invocation, one JSON line out. The agent's self-test and the tests of the kernel rules stand on it. C, because Node has
 * no blocking socket and no splice(2), and those are what must be tried.
 *
 * socket-probe CASE [--server-netns P] [--server-cgroup P]... [--client-netns P] [--client-cgroup P]...
 *   [--listen ADDRESS] [--connect ADDRESS] [--port N] [--count N] [--bytes N] [--size N] [--blocking-server]
 *   [--blocking-client] [--timeout SECONDS] [--delay MS] [--warm N] [--client-port N] [--fastopen] [--bind ADDRESS]
 *   [--connect-port N] [--server-uid N] [--client-uid N] [--connect-timeout] [--hold] [--device NAME] [--seed N]
 *   [--mptcp] [--tls] [--zerocopy] [--rcvbuf BYTES]
 *
 * Cases
 *   order       both ends send --bytes in writes of 1 B to 64 KiB and hash what arrives; ok: hashes equal both ways
 *   slow-reader the client sends up to --bytes while the server reads nothing until no byte more is taken for --delay ms,
 *               then reads all; `queued` is what the kernel took before the first read, `charged` how much of it, with
 *               overhead, the receiver's buffer of `room` bytes was charged (SO_MEMINFO); ok: hash equal
 *   half-close  --count times: request, shutdown(WR), answer --delay ms later; counts ok, eagain, other
 *   large-close --count times: the server sends --bytes and closes at once, the client reads slowly; ok: all arrived
 *   fionread    --count times: ioctl(FIONREAD) must say --size once poll says readable
 *   hidden      the server sends --bytes while the client sleeps for --delay ms; then ioctl(FIONREAD) must not say 0 before
 *               any of its reads of 8 KiB that finds something
 *   splice      the client reads --bytes by splice(2); ok: all arrived
 *   ping-pong   --count exchanges of --size bytes on one connection; `p50_ns`, `p99_ns`, `per_second`
 *   churn       --count connections, one exchange of --size each, told apart by a number; ok: none got another's
 *   addresses   one connection; what each end is told about it: `original4` and `original6` (SO_ORIGINAL_DST of IPv4 and
 *               IPv6 at the server), `server_accepted`, `server_peer` and, after the exchange, `server_later`; `client_peer`,
 *               `client_name`, `client_original4` and `client_original6` (the same at the client); ok: one exchange went through
 * --connect-timeout: the client's socket is non-blocking while it connects and blocking afterwards, as many HTTP clients'.
 * --mptcp: both ends are MPTCP sockets. --tls: the client takes the kernel's TLS as upper layer protocol, with no keys.
 * --zerocopy: the client's sockets have SO_ZEROCOPY. --rcvbuf: the server's sockets have so large a receive buffer.
 * --hold: the client keeps its last connection open until standard input ends (churn, ping-pong, addresses), and writes an empty
 * line when the exchanges are over. --device: SO_BINDTODEVICE at the client.
 * --warm opens that many connections first, with one small exchange each (probation).
 * Exit 0: the case ran (see `ok`); 2: usage or set-up failed, with a line on stderr.
 */
#include "sockets.h"
#include "cases.h"

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
	       CONNECT_PORT, SERVER_UID, CLIENT_UID, CONNECT_TIMEOUT, HOLD, DEVICE, SEED, MPTCP, TLS, ZEROCOPY, RCVBUF };
	static const struct option options[] = {
		{ "server-netns", 1, 0, SERVER_NETNS }, { "server-cgroup", 1, 0, SERVER_CGROUP },
		{ "client-netns", 1, 0, CLIENT_NETNS }, { "client-cgroup", 1, 0, CLIENT_CGROUP },
		{ "blocking-server", 0, 0, BLOCKING_SERVER }, { "blocking-client", 0, 0, BLOCKING_CLIENT },
		{ "listen", 1, 0, 'l' }, { "connect", 1, 0, 'c' }, { "bind", 1, 0, 'f' }, { "port", 1, 0, 'p' },
		{ "count", 1, 0, 'n' }, { "bytes", 1, 0, 'b' }, { "size", 1, 0, 's' }, { "timeout", 1, 0, 't' },
		{ "delay", 1, 0, 'd' }, { "warm", 1, 0, 'w' }, { "client-port", 1, 0, CLIENT_PORT }, { "fastopen", 0, 0, FASTOPEN },
		{ "connect-port", 1, 0, CONNECT_PORT }, { "server-uid", 1, 0, SERVER_UID }, { "client-uid", 1, 0, CLIENT_UID },
		{ "connect-timeout", 0, 0, CONNECT_TIMEOUT }, { "hold", 0, 0, HOLD }, { "device", 1, 0, DEVICE },
		{ "seed", 1, 0, SEED }, { "mptcp", 0, 0, MPTCP }, { "tls", 0, 0, TLS }, { "zerocopy", 0, 0, ZEROCOPY },
		{ "rcvbuf", 1, 0, RCVBUF },
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
		case HOLD: opt.hold = true; break;
		case DEVICE: opt.device = optarg; break;
		case SEED: opt.seed = atoi(optarg); break;
		case MPTCP: opt.mptcp = true; break;
		case TLS: opt.tls = true; break;
		case ZEROCOPY: opt.zerocopy = true; break;
		case RCVBUF: opt.rcvbuf = atoi(optarg); break;
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
		printf("{\"case\":\"addresses\",\"ok\":%s,\"original4\":\"%s\",\"original6\":\"%s\",\"server_accepted\":\"%s\",\"server_peer\":\"%s\",\"server_later\":\"%s\",\"client_peer\":\"%s\",\"client_name\":\"%s\",\"client_original4\":\"%s\",\"client_original6\":\"%s\",\"failure\":\"%s\"}\n",
		       ok ? "true" : "false", (char *)shared->original[0], (char *)shared->original[1], (char *)shared->server_accepted, (char *)shared->server_peer, (char *)shared->server_later,
		       (char *)shared->client_peer, (char *)shared->client_name, (char *)shared->client_original[0], (char *)shared->client_original[1],
		       (char *)shared->failure);
		return 0;
	}
	printf("{\"case\":\"%s\",\"ok\":%s,\"good\":%d,\"eagain\":%d,\"other\":%d,\"sent\":[%lld,%lld],\"got\":[%lld,%lld],\"queued\":%lld,\"charged\":%lld,\"room\":%lld,\"failure\":\"%s\"}\n",
	       probe->name, ok ? "true" : "false", shared->ok, shared->eagain, shared->other, shared->sent[0], shared->sent[1],
	       shared->got[0], shared->got[1], shared->queued, shared->charged, shared->room, (char *)shared->failure);
	return 0;
}
