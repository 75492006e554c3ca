/* A socket's addresses and ports, as sockops has them. */
#pragma once

static __always_inline void read_tuple(struct bpf_sock_ops *ops, struct tuple *out)
{
	out->reserved = 0;
	if (ops->family == AF_INET6) {
		out->local.word[0] = ops->local_ip6[0];
		out->local.word[1] = ops->local_ip6[1];
		out->local.word[2] = ops->local_ip6[2];
		out->local.word[3] = ops->local_ip6[3];
		out->remote.word[0] = ops->remote_ip6[0];
		out->remote.word[1] = ops->remote_ip6[1];
		out->remote.word[2] = ops->remote_ip6[2];
		out->remote.word[3] = ops->remote_ip6[3];
	} else {
		set_ipv4(&out->local, ops->local_ip4);
		set_ipv4(&out->remote, ops->remote_ip4);
	}
	out->local_port = ops->local_port;
	out->remote_port = bpf_ntohl(ops->remote_port);
}
