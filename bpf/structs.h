/*
 * What the kernel side and user space share. User space reads offsets and enum values from the object's BTF (see
 * native's layout()), so a field can move without a second copy of these to keep in step; names are the contract.
 */
#pragma once

/* An IPv6 address, or an IPv4 one in mapped form (::ffff:a.b.c.d), in network order. */
struct address {
	__u32 word[4];
};

enum pod_mode {
	POD_MODE_NODE = 1,
	POD_MODE_SIDECAR = 2,
};

enum acceleration {
	ACCELERATION_OFF = 0,
	ACCELERATION_L4 = 1,
	ACCELERATION_FORCE = 2,
	ACCELERATION_L7 = 3, /* as L4, and the HTTP fast path */
};

enum pod_flag {
	POD_CAPTURE = 1,    /* connect() is rewritten */
	POD_REDIRECTED = 2, /* iptables redirect what it connects to, so tuples do not mirror */
	POD_SPLICES = 4,    /* its label says so: none of its programs' sockets is short-circuited */
	POD_SPLICES_NOT = 8, /* its label says so; for the agent that comes after */
	POD_L7_AUTO = 64,    /* its HTTP that asks for nothing at L7 needs no proxy */
	POD_SEVERAL_IPV4 = 16, /* it has more addresses than the first */
	POD_SEVERAL_IPV6 = 32,
	POD_CALLS_PODS = 128, /* its listener at the proxy takes marked addresses, see mark_pod */
};

struct pod {
	__u64 cgroup_id;
	struct address ipv4, ipv6; /* what getsockname answers instead of loopback; all zero: none */
	__u32 slot;                /* index in pod_counters */
	__u32 generation;          /* of the slot: what sockets of its former pod still count is not this pod's */
	__u8 mode;
	__u8 acceleration;
	__u8 flags;
	__u8 reserved[5];
	/* For the agent that comes after the one that wrote them. */
	char uid[64];
	char cgroup_path[512];
};

/* A connection as the end that opened it sees it; only there from ACTIVE to PASSIVE establishment. Ports in host order. */
struct tuple {
	__u64 netns_cookie;
	struct address local, remote;
	__u16 local_port, remote_port;
	__u32 reserved;
};

struct original_dst {
	struct address address;
	__u16 port; /* network order */
	__u16 reserved;
};

struct establishing {
	__u64 cookie;
	__u64 sock;
	struct original_dst original;
	struct address source; /* for whom a proxy opens it; all zero: nobody else */
	__u32 sequence; /* the opener's first sequence number: a leftover of another connection does not match */
	__u8 captured;
	__u8 accelerated;
	__u8 tell; /* enum tell */
	__u8 brief; /* not accelerated for that alone */
	__u8 noted;
	__u8 http; /* SOCKET_HTTP for the other end */
	__u8 reserved[2];
	__u64 brevity;
};

/* What the opener tells the accepting end for its telemetry. */
enum tell {
	TELL_DIRECT = 1,  /* no proxy stands between */
	TELL_REPORTS = 2, /* the opener's side is reported */
};

struct peer {
	__u64 cookie;
	__u64 sock;
	__u64 netns_cookie; /* of the client whose entry it is, so that a removed pod's leftovers can be found */
	__u64 reports;      /* the accepting end's side is reported */
};

/* A client program: one executable in one container. */
struct program_key {
	__u64 cgroup_id; /* 0 in `client_verdicts`: in any container */
	__u64 inode;
	__u32 device;
	__u32 reserved;
};

struct listener_key {
	__u64 netns_cookie;
	struct address address;
	__u16 port;
	__u16 reserved;
	__u32 reserved2;
};

enum mark {
	MARK_NONE = 0,
	MARK_EVENT_DRIVEN = 1, /* by user space */
	MARK_BLOCKING = 2,     /* seen by a probe, or by user space; for good */
	MARK_SPLICED = 3,      /* by user space, or seen to use SO_ZEROCOPY: what moved bytes do not support */
};

struct verdict {
	__u64 netns_cookie;
	__u64 asked_ns; /* when user space was last asked for clearance */
	__u32 seen; /* connections that sent data without blocking */
	__u32 mark;
};

enum clearance_kind {
	CLEARANCE_GIVEN = 1,
	CLEARANCE_SPLICES = 2, /* by its executable */
};

/* What user space found out about a program in probation. A map of its own, so that neither overwrites the other. */
struct clearance {
	__u64 netns_cookie;
	__u32 kind;
	__u32 reserved;
};

/* Verdicts that a pod has in the two tables. */
struct verdict_quota {
	__u64 reported_ns;
	__u32 clients;
	__u32 listeners;
};

enum socket_flag {
	SOCKET_CAPTURED = 1,
	SOCKET_PROXY = 2,           /* belongs to an Envoy */
	SOCKET_IN_MAP = 4,
	SOCKET_PROBED = 8,          /* egress looks at this socket's file flags when it sends */
	SOCKET_PROBE_COUNTED = 16,
	SOCKET_ACCEPTED = 32,
	SOCKET_FORCED = 64,
	SOCKET_BLOCKING = 128,      /* a message was sent on a blocking file: plain TCP from then on */
	SOCKET_COUNTED_LIVE = 256,
	SOCKET_CONNECTING = 512,    /* the connect hook saw it, not yet established */
	SOCKET_TLS = 1024,          /* an upper layer protocol was seen: plain TCP from then on */
	SOCKET_PEER_REPORTS = 2048, /* what is moved counts at the other end's side as well */
	SOCKET_RESOLVED = 4096,     /* opened to a service, led to one of its endpoints */
	SOCKET_LET_PAST = 8192,     /* the proxy that others are led to, by the kernel's judgement of its policy */
	SOCKET_SOURCED = 16384,     /* opened by a proxy for somebody else: `source` */
	SOCKET_BRIEF = 32768,       /* not joined, since it is expected to be brief, and so far it is */
	SOCKET_CALLS_POD = 65536,   /* captured on the way to the own address of a pod whose policy the proxy judges */
	SOCKET_NOTED = 131072,      /* who opens this stands in `openings` */
	SOCKET_UPSTREAM = 524288,   /* counted among http_upstreams */
	SOCKET_TRACED = 1048576,    /* each of its messages is told to `watch_events` */
	SOCKET_TAPPED = 2097152,    /* and what is in them */
	SOCKET_HTTP = 262144,       /* takes part in the fast path: a captured client's, one that Envoy opens by a taught cluster, and their other ends */
};

/*
 * Connections that are told apart in telemetry, by netns cookies. Ports in host order. Zero in all but `client`: all others of
 * that client; in all but `server`: all others that come to it from elsewhere; in all: all others.
 */
struct flow_key {
	__u64 client, server;
	struct address peer;    /* of a client that is no pod of this node's mesh */
	struct address service; /* that the client asked for; zero: the server's own address */
	__u16 service_port, endpoint_port;
	__u32 reserved;
};

/* A socket's part in it; the first three are what has been added so far. */
struct flow {
	__u64 in, out, moved;
	struct flow_key key;
	__u64 opened_ns;
	__u64 rtt_ns; /* when it was last put into the histogram */
	__u32 flags;
	__u32 reason; /* counter: why it is not short-circuited */
};

struct socket_state {
	__u64 cookie;
	__u64 netns_cookie;
	__u64 sock; /* struct tcp_sock *, read by probing only */
	__u64 peer_cookie;
	__u64 peer_sock;
	__u64 bytes_moved;
	__u64 bytes_tcp; /* counted so far */
	__u64 brevity; /* whose place among the brief ones this connection counts at; 0: none */
	struct original_dst original;
	__u16 rewritten_port; /* network order; of a captured or resolved client */
	__u16 reserved;
	struct address endpoint; /* of a resolved client: where it was led to */
	struct address source; /* of both ends of what a proxy opened for somebody: who that is */
	struct program_key program; /* of the opener */
	struct listener_key listener; /* of the accepting end */
	struct tuple tuple; /* of the opener, for deleting leftovers */
	__u32 flags;
	__u32 slot;
	__u32 generation;
	__u32 data_segments; /* sent when egress last looked */
	__u32 pid; /* of the opener, as the initial namespace counts */
	__u32 messages_moved;
	struct flow flow;
};

/* How the latest connections of one program to one destination ended. */
struct brevity {
	__u64 name;
	__u64 ended_ns;
	__u32 streak; /* so many were brief, one soon after the other */
	__u32 reserved;
};

enum policy_state {
	POLICY_TERMS_DECIDE = 1,
	POLICY_UNREADABLE = 2, /* nobody new is let in */
};

enum service_kind {
	SERVICE_TCP = 1,
	SERVICE_HTTP = 2, /* for pods with POD_L7_AUTO alone */
};

enum event_type {
	EVENT_BLOCKING_CLIENT = 1,
	EVENT_BLOCKING_LISTENER = 2,
	EVENT_MAP_FULL = 3,
	EVENT_ZERO_COPY_CLIENT = 4,
	EVENT_ZERO_COPY_LISTENER = 5,
	EVENT_NEW_CLIENT = 6, /* in probation, and user space has not said yet whether it splices */
	EVENT_NEW_LISTENER = 7,
	EVENT_VERDICT_QUOTA = 8,
};

struct event {
	__u32 type;
	__u32 counter; /* EVENT_MAP_FULL: which */
	__u64 netns_cookie;
	struct program_key program;
	struct listener_key listener;
	__u32 after_acceleration; /* the socket was already in the map when it was seen blocking */
	__u32 pid; /* EVENT_NEW_CLIENT */
};

struct settings {
	__u32 acceleration; /* 0: nothing is paired anew, and nothing paired is moved */
	__u32 listener_ports_known; /* 0: listener_ports says nothing yet */
	__u32 flow_log; /* 1: a record of each connection that ends */
	__u32 layout;       /* of the structs in pinned maps, as user space's hash of them */
};

/* Global counters. Each name without its prefix, in lower case, is the counter's name in user space. */
enum counter {
	COUNTER_CONNECTIONS_CAPTURED,
	COUNTER_CONNECTIONS_SHORT_CIRCUITED,
	COUNTER_CONNECTIONS_OUTLASTED, /* ends of connections that were expected to be brief, and are not */
	COUNTER_MESSAGES_SHORT_CIRCUITED,
	COUNTER_BYTES_SHORT_CIRCUITED,
	COUNTER_BYTES_TCP,
	/* why a connection was not short-circuited */
	COUNTER_CONNECTION_SWITCHED_OFF,
	COUNTER_CONNECTION_POD_OFF,
	COUNTER_CONNECTION_NOT_LOCAL,
	COUNTER_CONNECTION_BEHIND_NAT,
	COUNTER_CONNECTION_CLIENT_PROBATION,
	COUNTER_CONNECTION_CLIENT_BLOCKING,
	COUNTER_CONNECTION_CLIENT_SPLICED,
	COUNTER_CONNECTION_LISTENER_PROBATION,
	COUNTER_CONNECTION_LISTENER_BLOCKING,
	COUNTER_CONNECTION_LISTENER_SPLICED,
	COUNTER_CONNECTION_POD_SPLICED, /* by label */
	COUNTER_CONNECTION_UPPER_LAYER, /* kTLS */
	COUNTER_CONNECTION_MPTCP,
	COUNTER_CONNECTION_FOREIGN_PSOCK,
	COUNTER_CONNECTION_ZERO_COPY, /* SO_ZEROCOPY: completions would never come */
	COUNTER_CONNECTION_FAST_OPEN,
	COUNTER_CONNECTION_BRIEF, /* as those of its program to this destination were */
	COUNTER_CONNECTION_BOUND_TO_DEVICE, /* not captured either */
	COUNTER_CONNECTION_IPV6_NOT_CAPTURED, /* the pod has no IPv6 address, and so the proxy no listener on [::1] */
	COUNTER_CONNECTION_STALE_TUPLE,
	COUNTER_CONNECTION_SOCKETS_FULL,
	COUNTER_CONNECTION_ESTABLISHING_FULL,
	COUNTER_CONNECTION_PEERS_FULL,
	COUNTER_CONNECTION_STORAGE_FAILED,
	/* why a message of a socket in the map went by TCP */
	COUNTER_MESSAGE_SWITCHED_OFF,
	COUNTER_MESSAGE_NO_STATE,
	COUNTER_MESSAGE_NO_PEER,
	COUNTER_MESSAGE_NOT_DRAINED,
	COUNTER_MESSAGE_PEER_FULL,
	COUNTER_MESSAGE_BLOCKING,
	COUNTER_MESSAGE_UPPER_LAYER,
	COUNTER_MESSAGE_REDIRECT_FAILED,
	/* refused by policy */
	COUNTER_POLICY_CONNECT_REFUSED, /* at connect(), between pods of this node */
	COUNTER_POLICY_CONNECT_LET_PAST, /* not refused: judged at connect(), so that no proxy has to */
	COUNTER_POLICY_ARRIVAL_REFUSED, /* segments that would have opened a connection */
	COUNTER_POLICY_HOST_LET_IN, /* segments of the node's own connections, whatever the policy says */
	/* looked up in the namespace of a pod whose callers go to the proxy */
	COUNTER_INBOUND_STEERED,
	COUNTER_INBOUND_UNSERVED, /* refused: the proxy does not listen there */
	/* services decided at connect() */
	COUNTER_CONNECTIONS_RESOLVED,
	COUNTER_CONNECTIONS_WITHOUT_ENDPOINT, /* refused */
	COUNTER_CONNECTION_ENDPOINT_GONE, /* the proxy's way instead */
	COUNTER_ENDPOINTS_LEFT_OUT,
	/* the HTTP fast path: requests that were moved past Envoy, that it was told where to send, and that it had to itself */
	COUNTER_HTTP_REQUESTS_FAST,
	COUNTER_HTTP_REQUESTS_PIPELINED, /* of these: before the answer to the one before them */
	COUNTER_HTTP_REQUESTS_DRAWN,
	COUNTER_HTTP_REQUESTS_ENVOY,
	COUNTER_HTTP_ANSWERS_FAST,
	/* why not; bench/requests.ts has the words for each, and its test says so when one is missing */
	COUNTER_HTTP_SWITCHED_OFF,
	COUNTER_HTTP_POD_OFF,
	COUNTER_HTTP_NO_ROUTES,
	COUNTER_HTTP_NO_HOST,
	COUNTER_HTTP_NO_CLASS,
	COUNTER_HTTP_CLASS_ENVOY,
	COUNTER_HTTP_CLASS_PAUSED,
	COUNTER_HTTP_NO_ENDPOINT,
	COUNTER_HTTP_EJECTED, /* too many of its endpoints to draw among the others */
	COUNTER_HTTP_POLICY_ENVOY,
	COUNTER_HTTP_BODY,
	COUNTER_HTTP_CLOSE,
	COUNTER_HTTP_SAMPLED,
	COUNTER_HTTP_TRACED, /* it comes with a trace context that says so, or may */
	COUNTER_HTTP_NOT_TEACHABLE,
	COUNTER_HTTP_NOT_LEARNT,
	COUNTER_HTTP_CONNECTIONS_BOUND, /* drawn, and by connections that clients share: there are as many of their own as there may be */
	COUNTER_HTTP_BUSY,
	COUNTER_HTTP_NOT_DRAINED,
	COUNTER_HTTP_REDIRECT_FAILED,
	/* connections that are Envoy's for good */
	COUNTER_HTTP_CHANNELS,
	COUNTER_HTTP_CHANNELS_FULL,
	COUNTER_HTTP_CHANNELS_LOST,
	COUNTER_HTTP_LOST_DOUBT,
	COUNTER_HTTP_LOST_PIPELINED,
	COUNTER_HTTP_LOST_BLOCKING,
	COUNTER_HTTP_LOST_ANSWER, /* whose end can't be told, or that can't be moved */
	COUNTER_HTTP_LOST_CLOSE, /* Envoy said `Connection: close`, as it had been asked to or by itself */
	COUNTER_HTTP_LOST_ENVOY_FIRST, /* Envoy answered what was not asked, or before it was asked whole */
	/* what ended in the middle */
	COUNTER_HTTP_CLIENTS_RESET,
	COUNTER_HTTP_CLIENTS_CLOSED,
	COUNTER_HTTP_SERVERS_RESET,
	COUNTER_HTTP_ANSWERS_UNBOUNDED,
	/* what Envoy taught */
	COUNTER_HTTP_LESSONS,
	COUNTER_HTTP_LESSONS_REFUSED,
	COUNTER_HTTP_TOTALS_FULL,
	/* bookkeeping */
	COUNTER_VERDICTS_FULL,
	COUNTER_VERDICTS_QUOTA, /* a pod has as many as one may have */
	COUNTER_EVENTS_LOST,
	COUNTER_FLOWS_FULL, /* connections counted under "other" */
	COUNTER_FLOW_RECORDS_LOST,
	COUNTER_WATCH_EVENTS_LOST,
	COUNTERS
};

/* Per pod, indexed by pod.slot; u64 each. */
struct pod_counters {
	__u64 connections_captured;
	__u64 captured_closed;
	__u64 connections_short_circuited;
	__u64 messages_short_circuited;
	__u64 bytes_short_circuited;
	__u64 bytes_tcp;
	__u64 connections_plain; /* both ends on this node, but not short-circuited */
	__u32 generation; /* of pod.generation: whose these are */
	__u32 reserved;
};

enum flow_limit {
	FLOW_RTT_BUCKETS = 16,  /* the last one has no bound */
	FLOW_RTT_FIRST_US = 16, /* bound of the first one; each is twice the one before */
};

/*
 * As Istio counts: `received` by the server, `sent` by it, at both sides. What policy forbids, or nobody answers, is opened and
 * closed at once, as ztunnel tells it: what is open is `opened` without the three others.
 */
struct flow_side {
	__u64 opened, closed, received, sent;
	__u64 denied; /* closed since policy forbids it: before it was established, or by user space */
	__u64 failed; /* closed without ever being established */
	__u64 rtt_sum_us;
	__u64 rtt[FLOW_RTT_BUCKETS];
};

struct flow_totals {
	struct flow_side source, destination;
};

/* What user space keeps of a side of entries whose pods are gone, by a hash of the labels that it had. */
struct retired_key {
	__u64 hash[2];
};

enum flow_flag {
	FLOW_OPEN = 1,
	FLOW_ACCEPTED = 2,
	FLOW_REPORTS = 4, /* this end's side */
	FLOW_LOGGED = 8,
};

enum flow_way {
	FLOW_SHORT_CIRCUITED = 1,
	FLOW_PLAIN = 2,
	FLOW_PROXY = 3,
	FLOW_DENIED = 4, /* there is no connection */
};

struct flow_record {
	struct flow_key key;
	struct address client, endpoint;
	__u16 client_port;
	__u16 reserved;
	__u32 way;
	__u32 reason; /* counter, COUNTERS: none */
	__u32 rtt_us;
	__u64 received, sent;
	__u64 moved; /* of both */
	__u64 duration_ns;
};

/* What connect() leads to. */
enum capture { CAPTURE_NO, CAPTURE_OUTBOUND, CAPTURE_INBOUND, CAPTURE_RESOLVED, CAPTURE_REFUSED, CAPTURE_POD };

/* Places in `watches`. */
enum watcher {
	WATCH_TRACE = 0,
	WATCH_CAPTURE = 1,
	WATCH_REQUESTS = 2, /* of the HTTP fast path: all, whatever the rest says */
	WATCHERS,
};

/* Whose connections are told: those that are established from now on. */
struct watch {
	__u64 netns_cookie; /* of either end; 0: any */
	struct address address; /* of either end, or asked for; all zero: any */
	__u32 on;
	__u16 port; /* the same; 0: any */
	__u16 reserved;
	__s64 left; /* bytes of payload that may still be told; user space adds to it */
};

enum watch_what {
	WATCH_CONNECT = 1,   /* `reason`: enum capture */
	WATCH_DENIED = 2,
	WATCH_OPENED = 3,    /* the opener's end is established; `reason`: why it is not paired */
	WATCH_ACCEPTED = 4,
	WATCH_MOVED = 5,     /* a message went into the partner */
	WATCH_BY_TCP = 6,    /* `reason`: why it did not */
	WATCH_FAST = 7,      /* a request went to a server that was learnt; `peer_cookie` */
	WATCH_TO_ENVOY = 8,  /* `reason`: why it is not fast */
	WATCH_ANSWERED = 9,  /* by that server; `reason`: status */
	WATCH_CLOSED = 10,
	WATCH_PAYLOAD = 11,
	WATCH_LED = 12,      /* what was told last of this socket went into that of `peer_cookie`, which is not its peer */
	WATCH_REQUEST = 13,  /* struct watch_request */
	WATCH_ANSWER = 14,   /* `reason`: status; `bytes`: of it; `started_ns`: of the request */
	WATCH_CUT = 15,      /* `bytes` of payload that are not told: there were more than there may be */
};

struct watch_event {
	__u32 what;
	__u32 reason; /* enum counter, if nothing else is said; COUNTERS: none */
	__u64 at_ns;  /* CLOCK_MONOTONIC */
	__u64 cookie, peer_cookie;
	__u64 netns_cookie, other_netns;
	struct address local, remote;
	__u16 local_port, remote_port;
	__u32 flags; /* enum socket_flag */
	struct original_dst asked;
	__u32 pid;
	__u64 bytes;
	__u64 started_ns;
};

#define WATCH_HEAD 256 /* bytes of a request's head that are told */

struct watch_request {
	__u32 what;
	__u32 size; /* of the request, or of its first message */
	__u64 at_ns;
	__u64 cookie, netns_cookie, server_netns;
	__u32 service; /* key in http_services */
	__u32 length;  /* of the head, as far as it is told */
	__u8 head[WATCH_HEAD];
};

#define WATCH_CHUNK 4096 /* bytes of payload in one event */
#define WATCH_CHUNKS 16  /* of one message; what is behind is only counted */

struct watch_payload {
	__u32 what;
	__u32 length; /* of `data` */
	__u64 at_ns;
	__u64 cookie;
	__u32 at;   /* in the message */
	__u32 size; /* of the message */
	__u8 data[WATCH_CHUNK];
};
