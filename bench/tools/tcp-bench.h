/* What the parts of tcp-bench share. */
#pragma once
#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "histogram.h"

#define MAX_CGROUPS 64
#define MAX_HEADERS 16
#define MAX_TALLY 64
#define IO_BUFFER (256 << 10)

enum mode { MODE_SERVER, MODE_PING_PONG, MODE_BULK, MODE_HTTP };

/*
 * Each connection to the server begins with this, in network order. Answers to ping-pongs start with the request's first
 * eight bytes, so that a client sees when it got another's.
 */
struct hello {
	uint32_t magic, kind, request_bytes, response_bytes;
};
#define HELLO_MAGIC 0x75706274u /* "upbt" */
enum { KIND_PING_PONG = 0, KIND_SINK = 1 };

struct options {
	enum mode mode;
	const char *listen, *host, *port, *path, *authority, *method;
	const char *headers[MAX_HEADERS];
	int header_count;
	bool new_connection_each, tally_body, vary, wait;
	const char *tally_header, *other_path;
	int connections, warm_connections, cpu;
	uint64_t request_bytes, response_bytes, count, body_bytes, other_each, warm_requests, requests_per_connection;
	double duration_s, warm_up_s, timeout_s, pause_s, progress_s;
	const char *cgroups[MAX_CGROUPS];
	int cgroup_count;
};
extern struct options options;

enum failure { FAILED_CONNECT, FAILED_CLOSED, FAILED_TIMEOUT, FAILED_STATUS, FAILED_MALFORMED, FAILURES };

struct results {
	struct histogram latency;
	uint64_t requests, bytes_sent, bytes_received, connections_opened, closed_by_server;
	/* Also those that were under way at the end of the measured time. */
	uint64_t requests_begun;
	uint64_t failures[FAILURES];
	uint64_t statuses[600];
	char first_failure[256];
	struct {
		char value[96];
		uint64_t count;
	} tally[MAX_TALLY];
	int tally_count;
	double seconds;
	uint64_t cgroup_usec[MAX_CGROUPS], machine_usec;
};
extern struct results results;

extern volatile bool stop_requested;

uint64_t now_ns(void);
void die(const char *action, const char *object) __attribute__((noreturn));
void resolve(struct sockaddr_storage *address, socklen_t *size);
int epoll_or_die(void);

int run_server(void);
void run_load(void);
void run_bulk(void);
void print_progress(void);
