/* Numbers that the kernel's BTF does not carry (they are macros there). */
#pragma once

#define AF_INET 2
#define AF_INET6 10
#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80 /* linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number */
#define SOL_SOCKET 1
#define SO_RCVBUF 8
#define SOCK_RCVBUF_LOCK 2 /* in sk_userlocks: the application chose the size itself */
#define SOL_TCP 6
#define TCP_WINDOW_CLAMP 10
#define TCP_NOTSENT_LOWAT 25
#define ECONNABORTED 103
#define ECONNREFUSED 111
#define ETH_P_IPV6 0x86dd
#define IPV4_HEADER 20 /* without options */
#define IPV6_HEADER 40
/* Of a TCP header: up to its flags, and two of these. */
#define TCP_HEAD 14
#define TCP_SYN 0x02
#define TCP_SYN_ACK 0x12
/* What connect() judged so lately is not judged again as it arrives; less than LOOK_AGAIN_MS of agent/dataplane/policy-enforcer.ts. */
#define JUDGED_NS 200000000ull
#define O_NONBLOCK 04000   /* 0x4000 on MIPS, which is not built for */

/* What user space may turn a getsockopt buffer into at most; larger ones are passed through. */
#define GETSOCKOPT_BUFFER_MAX 4096

#define CONNECT_ALLOW 1
#define CONNECT_REFUSE 0
#define EGRESS_ALLOW 1
#define INGRESS_ALLOW 1
#define INGRESS_REFUSE 0

/* A pod's sidecar in Istio's own layout: pkg/cmd/pilot-agent options and the injection template. */
#define SIDECAR_UID 1337
#define OUTBOUND_PORT 15001
#define INBOUND_PORT 15006
#define HBONE_PORT 15008
/* Ports that Istio's inbound rules exempt: prometheus 15090, health 15021, HBONE 15008, agent 15020. */
#define INBOUND_EXEMPT(port) ((port) == 15008 || (port) == 15020 || (port) == 15021 || (port) == 15090)

/* DESIGN rule 11: so many connections of a listener or program must have sent data without blocking. */
#define PROBATION_CONNECTIONS 8

/* User space is asked again about a program that it could not look at, not more often than this. */
#define CLEARANCE_AGAIN_NS 50000000ull
/* So that one pod with many executables or listeners can't take all room from the others. */
#define VERDICTS_PER_POD 64
#define QUOTA_EVENT_AGAIN_NS 60000000000ull

/* What a short-circuited socket gets, in bytes; docs/kernel-rules.md, rule 7. The kernel limits the first to net.core.rmem_max. */
#define PAIRED_RCVBUF (1 << 20)
#define PAIRED_WINDOW (128 << 10)
#define PAIRED_NOTSENT (16 << 10)

/* What is brief, and how soon the next has to end for both to be in a row; bpf/brief.h. The number of places is a power of two. */
#define BRIEF_STREAK 64
#define BRIEF_MESSAGES 3
#define BRIEF_BYTES (16 << 10)
#define BRIEF_GAP_NS 10000000ull
#define BRIEF_PLACES 4096

#define KERNEL_6_2 (6 << 16 | 2 << 8)
#define MAX_PODS 1024
#define MAX_CONNECTIONS 131072
/* Connections between the first end's establishment and the second's, or the opener's first message. */
#define MAX_ESTABLISHING 65536
#define MAX_VERDICTS 16384
/* Different client, server and service; and so many of them of one client. */
#define MAX_FLOWS 16384
#define FLOWS_PER_POD 512
#define MAX_RETIRED_FLOWS 4096
/* Ends of pairs that closed before the other one, while connections are logged. */
#define MAX_FLOW_LEAVERS 16384
#define MAX_REFUSALS 4096
#define MAX_LISTENER_PORTS 65536
/* A service has an entry for each of its addresses and ports. An update needs room for the old and the new endpoints. */
#define MAX_SERVICES 65536
#define MAX_ENDPOINTS 262144
#define MAX_OUTLIERS 4096

/* How long an endpoint that did not answer is left out, and how it is got round. */
#define OUTLIER_NS 5000000000ull
#define OUTLIER_DRAWS 4
#define OUTLIER_SCAN 32
/* Endpoints among which a client's own is looked for. */
#define AFFINITY_SCAN 256
