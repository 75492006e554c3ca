/*
 * The HTTP fast path: what user space writes for it and what it keeps by itself; docs/http-fast-path.md. Text in these structs
 * is padded with zeros. Rows of the tables are never changed in place while a program may be led to them: user space writes
 * new ones and then the one word that leads there.
 */
#pragma once

#define HTTP_HEAD_MAX 2048     /* longer heads are Envoy's */
#define HTTP_SAME_HEAD_MAX 512 /* that are compared with the one before, and not read */
#define HTTP_LINES_MAX 48      /* of a head, its first line included */
#define HTTP_HOST_MAX 64
#define HTTP_PATH_MAX 64       /* of a rule */
#define HTTP_NAME_MAX 32       /* of a header that a rule asks for */
#define HTTP_VALUE_MAX 40
#define HTTP_CONDITIONS 3      /* of a rule */
#define HTTP_RULES_EACH 64     /* of a virtual host, or of a policy */
#define HTTP_SPLITS 8          /* destinations of a route */
#define HTTP_LEARNT 16         /* servers of one client connection */
#define HTTP_REQUEST_BODY_MAX (64 << 10)
#define HTTP_ANSWER_MAX (1 << 20)
#define HTTP_PIPELINED 16      /* requests behind the one that is being answered */
#define HTTP_ANSWER_CAP (4 << 20) /* of one that turned out longer, and of what its reader has not read */
#define HTTP_BLANKS 96
#define HTTP_SWALLOWED (1 << 30) /* more than a message holds */
#define HTTP_WEIGHT_TEXT 32
#define HTTP_ENDPOINT_TEXT 160
/* Where the name of a split's line has another letter if Envoy is to trace the request; agent/http/names.ts. */
#define HTTP_SAMPLED_AT 2
#define HTTP_SAMPLED 's'
/* The same of an endpoint's line, for connections that all of the pod's clients share. */
#define HTTP_SHARED_AT 2
#define HTTP_SHARED 'o'
#define HTTP_DRAW_TEXT (HTTP_WEIGHT_TEXT + HTTP_ENDPOINT_TEXT)
#define HTTP_BUCKETS 20        /* of histograms: Envoy's, and so Istio's */
#define HTTP_SERVICE_TEXT 384

#define MAX_HTTP_CLASSES 4096
#define MAX_HTTP_RULES 16384
#define MAX_HTTP_HOSTS 32768
#define MAX_HTTP_VHOSTS 8192
#define MAX_HTTP_PORTS 16384
#define MAX_HTTP_CLUSTERS 8192
#define MAX_HTTP_ENDPOINTS 32768
#define MAX_HTTP_LOADS 8192
#define MAX_HTTP_UPSTREAMS 8192
#define MAX_HTTP_DETECTORS 2048
#define MAX_HTTP_MONITORS 16384
#define MAX_HTTP_POLICIES 4096
#define MAX_HTTP_CHANNELS 65536
#define MAX_HTTP_TOTALS 16384
#define MAX_HTTP_SERVICES 16384

/* SO_MARK of what Envoy opens by a taught cluster. */
#define HTTP_TAUGHT_MARK 0x756e6474

/* The agent writes its heartbeat more often than this; without it nothing new is fast. */
#define HTTP_HEARTBEAT_NS 1000000000ull
/* For so long a class is Envoy's after an answer that can't be bounded, or says that its server fails. */
#define HTTP_ENVOY_NS 10000000000ull

/* Bits of `http_faults`: what a kernel could do wrong, for the tests of the agent's self-test, which has to find it. */
enum http_fault {
	HTTP_FAULT_PUSH = 1,         /* what is behind the room that was made is damaged */
	HTTP_FAULT_PUSH_LARGE = 2,   /* the same, in messages of several pages */
	HTTP_FAULT_BLANK = 4,        /* lessons stay where they are */
	HTTP_FAULT_MOVE = 8,         /* an answer is not moved */
	HTTP_FAULT_ORDER = 16,       /* messages are moved past what came by TCP */
	HTTP_FAULT_BOUND = 32,       /* an answer is moved whatever its reader has left */
	HTTP_FAULT_SERVER_END = 64,  /* nobody is told that a server ended */
	HTTP_FAULT_ORDERLY = 128,    /* an orderly end is told as a reset */
	HTTP_FAULT_CLIENT_END = 256, /* nobody is told that a client ended */
	HTTP_FAULT_SWITCH = 512,     /* requests are fast whatever the agent says */
};

enum http_method {
	HTTP_GET = 1,
	HTTP_HEAD = 2,
	HTTP_POST = 3,
	HTTP_PUT = 4,
	HTTP_DELETE = 5,
	HTTP_PATCH = 6,
	HTTP_OPTIONS = 7,
};

enum http_path_kind {
	HTTP_PATH_ANY = 0,
	HTTP_PATH_EXACT = 1,
	HTTP_PATH_PREFIX = 2,
	HTTP_PATH_SEPARATED = 3, /* Envoy's path_separated_prefix: the prefix itself, or followed by a slash */
};

enum http_value_kind {
	HTTP_VALUE_PRESENT = 0,
	HTTP_VALUE_EXACT = 1,
	HTTP_VALUE_PREFIX = 2,
};

/* Of a header, or of the host when it has no name. A header that comes twice leads to Envoy whatever is asked of it. */
struct http_condition {
	__u8 kind;
	__u8 inverted;     /* an absent header fulfils an inverted condition, as Envoy's invert_match with present_match; else see compile.ts */
	__u8 name_length;
	__u8 value_length;
	__u32 reserved;
	__u8 name[HTTP_NAME_MAX];   /* each byte | 0x20, which makes letters small and '_' 0x7f */
	__u8 value[HTTP_VALUE_MAX]; /* of the host: small letters */
};

/* All that is asked has to hold. */
struct http_rule {
	__u8 path_kind;
	__u8 path_length;
	__u8 conditions_used;
	__u8 path_inverted;
	__u16 methods; /* bits 1 << http_method; 0: any */
	__u16 reserved;
	__u32 verdict; /* of a virtual host: index in http_classes; of a policy: enum http_judgement */
	__u32 reserved2;
	__u8 path[HTTP_PATH_MAX];
	struct http_condition conditions[HTTP_CONDITIONS];
};

enum http_judgement {
	HTTP_ALLOWED = 1,
	HTTP_TO_ENVOY = 2, /* denied, or not to be judged here: Envoy says so */
};

/* A list of rules of which the first that holds counts. */
struct http_list {
	__u32 first;
	__u32 count;
	__u32 otherwise; /* of a virtual host: a class, or 0xffffffff: Envoy's; of a policy: enum http_judgement */
	__u32 reserved;
};

enum http_pod_state {
	HTTP_POD_OFF = 0,
	HTTP_POD_SUSPENDED = 1, /* all goes through Envoy, undrawn and untaught; what is under way ends */
	HTTP_POD_LIVE = 2,
};

/* By netns cookie of the client. */
struct http_pod {
	__u32 table; /* whose ports and hosts are its own */
	__u32 state;
	__u32 request_ids; /* what is fast gets an x-request-id, if it has none */
	__u32 reserved;
};

struct http_port_key {
	__u32 table;
	__u16 port; /* host order */
	__u16 reserved;
	struct address address; /* that was asked for; all zero: any that has no entry of its own */
};

struct http_port {
	__u32 routes; /* whose hosts are looked up; never reused */
	__u32 reserved;
};

/* Exact names as Envoy's domains, with a port where the domain has one; "*" for any other host. */
struct http_host_key {
	__u32 routes;
	__u8 host[HTTP_HOST_MAX];
};

struct http_split {
	__u32 until;   /* a draw below this, and not below the one before, is this one's */
	__u32 cluster; /* index in http_clusters */
	__u32 service; /* key in http_services; 0: none that has a name */
	__u32 reserved;
	__u8 text[HTTP_WEIGHT_TEXT]; /* a whole header line that makes Envoy choose the same; HTTP_SAMPLED_AT */
};

/*
 * What a request's headers say of being traced, in the kinds that a tracer may read: bits. Of a class: the kind that its own
 * reads, 0 being none.
 */
enum http_trace {
	HTTP_TRACE_B3 = 1, /* plainly "not sampled" */
	HTTP_TRACE_W3C = 2,
	HTTP_TRACE_B3_ASKED = HTTP_TRACE_B3 << 2, /* anything else */
	HTTP_TRACE_W3C_ASKED = HTTP_TRACE_W3C << 2,
	HTTP_TRACE_ASKED = 16, /* asked of Envoy, whatever the kind */
	HTTP_TRACE_ID = 32,    /* there is an x-request-id */
};

enum http_class_flag {
	HTTP_CLASS_FAST = 1, /* else Envoy's, and drawn by it */
};

struct http_class {
	__u32 generation; /* together with the index the name that Envoy teaches it by; never reused. 0: no class */
	__u32 flags;
	__u32 splits_used;
	__u32 total; /* of weights: the last `until` */
	__u32 sampled; /* of 2^32: so many are given to Envoy to be traced */
	__u32 trace;   /* enum http_trace */
	__u64 envoy_until_ns; /* the kernel's own: bounded answers, 5xx */
	struct http_split splits[HTTP_SPLITS];
};

enum http_balance {
	HTTP_LEAST_REQUEST = 1, /* of two drawn by weight the one with fewer under way */
	HTTP_RANDOM = 2,
};

struct http_cluster {
	__u32 first; /* index in http_endpoints */
	__u32 count; /* 0: Envoy's to refuse */
	__u32 balance;
	__u32 detector; /* index in http_detectors; 0: its endpoints are not ejected */
	/* Of those that are ejected: up to so many are left out; from so many on none is, as in Envoy's panic; between the two all is Envoy's. */
	__u32 spare;
	__u32 panic;
};

/* A row of an alias table, as struct endpoint of resolve.h: row i is taken if a random number is below `keep`, else row `alias`. */
struct http_endpoint {
	struct address address;
	__u16 port;      /* network order */
	__u16 reserved;
	__u32 load;      /* index in http_loads: one for each address and port, whichever clusters it is in */
	__u32 policy;    /* index in http_policies; 0: always allowed; 0xffffffff: always Envoy's */
	__u32 keep;
	__u32 alias;     /* relative to the cluster's first */
	__u32 teachable; /* on this node, event-driven, and taught of: else always Envoy's */
	__u32 monitor;   /* index in http_monitors; 0: it is not ejected */
	__u8 text[HTTP_ENDPOINT_TEXT]; /* a whole header line that makes Envoy choose the same */
};

struct http_load {
	__u32 under_way;
};

/* Envoy's outlier detection of one cluster as one config class has it; the agent's. http-outlier.h has the rules. */
struct http_detector {
	__u64 key; /* whose place it is: it stays so over changes of tables, and of agents */
	__u64 interval_ns, base_ns, longest_ns;
	__u32 consecutive_5xx, consecutive_gateway; /* 0: nobody is ejected for it */
	__u32 most_percent; /* of `hosts` that may be out at a time */
	__u32 always_one;   /* whatever that comes to */
	__u32 hosts;        /* of the cluster, in all priorities */
	__u32 cluster;      /* index in http_clusters, of the newest table that has it */
};

/* What has come of it, in the same place; the programs'. */
struct http_ejections {
	__u64 look_ns; /* when the first of those that are out comes back */
	__u32 out;
	__u32 busy;    /* somebody changes `out` */
	__u32 cluster; /* index in http_clusters, of whose endpoints so many are out */
	__u32 reserved;
	__u64 by_5xx, by_gateway;
	__u64 overflows; /* ejections that would have been too many */
};

/* One endpoint as a detector sees it. The first two are the agent's, the rest is the programs'. */
struct http_monitor {
	__u64 key;
	__u32 detector;
	__u32 failures;         /* 5xx in a row */
	__u32 gateway_failures; /* 502, 503 and 504 in a row */
	__u32 times;            /* Envoy's factor of the time for which it is out */
	__u64 out_until_ns;     /* of the last ejection */
	__u32 ejected;          /* and its counts have not begun anew since */
	__u32 ejections;
};

/* What the kernel keeps. */
enum http_channel_state {
	HTTP_IDLE = 0,
	HTTP_FAST = 1,  /* exchanges with one server under way, the kernel's; several if the client pipelines */
	HTTP_ENVOY = 2, /* an exchange under way, Envoy's */
	HTTP_LOST = 3,  /* Envoy's for good */
};

struct http_learnt {
	__u64 cookie;      /* of the server's socket; 0: none */
	__u64 sock;        /* struct tcp_sock * of it, read by probing only */
	__u64 proxy_sock;  /* of its TCP peer, which is Envoy's */
	__u64 netns_cookie; /* of the server */
	__u32 class;
	__u32 generation;
	__u32 endpoint;    /* index in http_endpoints */
	__u32 busy;        /* enum http_use; 0: free */
	struct tuple tuple; /* as Envoy's end has it */
};

/* Bits. */
enum http_use {
	HTTP_ENVOY_ASKS = 1,   /* Envoy has not sent its request whole */
	HTTP_ENVOY_AWAITS = 2, /* its answer is not complete */
	HTTP_CLOSING = 4,      /* not to be used any more */
	HTTP_ENVOY_HEAD = 8,   /* Envoy's request is HEAD */
};

/* Why an answer's end can't be told, or is not waited for. */
enum http_unknown {
	HTTP_UNKNOWN_UNTIL_CLOSE = 1,
	HTTP_UNKNOWN_LOST = 2,
	HTTP_ANSWERED = 3, /* it has come, whole, before the request was sent whole: the rest of that is still the server's */
	HTTP_CUT = 4,      /* while LOST: the connection is about to be ended, and nothing more of what the client or Envoy sends on it goes anywhere */
};

/* Once all that is under way is answered, the connection is Envoy's for good. */
enum http_pipelines {
	HTTP_PIPELINES = 1,
	HTTP_PIPELINES_LAST = 2, /* the last request asked for the connection's end */
};

/* The client's connection is to end, and the agent could not be told; it looks for such when events were lost. */
enum http_untold {
	HTTP_UNTOLD_RESET = 1,
	HTTP_UNTOLD_ORDERLY = 2,
};

/* By the cookie of the client's socket. */
struct http_channel {
	struct bpf_spin_lock lock; /* for all that follows */
	__u32 state;               /* enum http_channel_state */
	__u64 sock, proxy_sock;    /* the client's struct tcp_sock *, and its TCP peer's */
	__u64 proxy_cookie;        /* of the latter */
	__u64 used_ns;             /* when the last exchange began or ended */
	__u64 started_ns;          /* of the exchange under way */
	__u64 server, server_netns; /* cookies, while FAST */
	__u64 request_bytes, answer_bytes;
	__u32 open;                /* the request under way has not been sent whole */
	__u32 to_head;             /* and is HEAD */
	__u32 class, generation;   /* of it; generation 0: not known, nothing is to be learnt */
	__u32 endpoint;            /* drawn */
	__u32 load;                /* counted there; 0xffffffff: nowhere */
	__u32 next;                /* which of two places is given away */
	__u32 unknown;             /* enum http_unknown; 0: the answer's end is to come */
	__u32 service;             /* of the split that was drawn */
	__u32 status;              /* of the answer under way; 0: none has begun */
	/* Sent before the answer to the one under way, to the same server: the first is the next to be answered. */
	__u32 waiting;
	__u32 heads;               /* bits: these are HEAD */
	__u32 sizes[HTTP_PIPELINED]; /* in bytes */
	__u32 pipelines;           /* enum http_pipelines */
	__u32 monitor;             /* of the endpoint that was drawn; 0: none */
	__u32 untold;              /* enum http_untold */
	__u32 reserved;
	__u64 cookie;              /* of the client's socket */
	struct tuple tuple;        /* as the client's end has it */
	struct http_learnt learnt[HTTP_LEARNT];
};

struct http_client_key {
	__u64 netns_cookie;
	__u32 port; /* of the captured client's socket, host order */
	__u32 reserved;
};

/* By netns cookie of the client: what the kernel itself has under way, and had. */
struct http_activity {
	__u64 under_way;
	__u64 started;
};

struct http_control {
	__u64 heartbeat_ns; /* CLOCK_MONOTONIC */
	__u32 on;
	__u32 lost_events;  /* raised by the kernel, in the second entry of the map; in the first: those that the agent knows of */
};

/* Of connections that Envoy opened by taught clusters, each for one client alone; all zero: of the whole node. */
struct http_upstream_key {
	struct address address; /* of the server */
	__u16 port;             /* host order */
	__u16 reserved;
	__u32 reserved2;
};

enum http_end {
	HTTP_END_CLIENT = 1, /* the server ended in the middle of an answer: the client's connection is to end */
	HTTP_END_SERVER = 2, /* the client ended in the middle of an exchange: the server's is to */
	HTTP_EJECTED = 3,    /* no connection: an endpoint, `cookie` being its place in http_monitors, `orderly` enum http_ejected_for */
};

/* Through the ring buffer `http_events`. */
struct http_event {
	__u32 type;
	__u32 orderly; /* all that the server sent has been moved, and it had ended by a FIN */
	__u64 cookie;  /* of the socket that is to be ended */
	__u64 netns_cookie;
	struct tuple tuple; /* as that socket has it: local, remote */
};

enum http_ejected_for {
	HTTP_EJECTED_FOR_5XX = 1,
	HTTP_EJECTED_FOR_GATEWAY = 2,
};

/* How an exchange ended, in Envoy's response flags: https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/observability/access_log/usage */
enum http_ending {
	HTTP_WHOLE = 0,            /* it was answered */
	HTTP_DOWNSTREAM_ENDED = 1, /* DC */
	HTTP_UPSTREAM_ENDED = 2,   /* UC */
	HTTP_RESET_HERE = 3,       /* LR: what came can't be moved on */
};

/* Of nothing that a change of routes makes anew: the sums of a class go on in the class that takes its place. */
struct http_total_key {
	__u64 client, server; /* netns cookies */
	__u32 service;        /* key in http_services */
	__u16 status;         /* 0: no answer had begun */
	__u16 ending;         /* enum http_ending */
};

/* Buckets are not cumulative; http_bounds has where they end. */
struct http_total {
	__u64 requests;
	__u64 request_bytes, answer_bytes; /* heads and bodies, as far as they came */
	__u64 duration_us;
	__u64 duration[HTTP_BUCKETS];
	__u64 request[HTTP_BUCKETS];
	__u64 answer[HTTP_BUCKETS];
};

/* `NAMESPACE/NAME/HOSTNAME`, written by the agent. */
struct http_service {
	__u8 text[HTTP_SERVICE_TEXT];
};
