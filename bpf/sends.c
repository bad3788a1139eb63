/* Which process sends what no hook sees?
 *
 * For `netns-debug trace --kernel`, after trace.c. The connect and sendmsg hooks judge TCP, UDP and
 * ping sockets; a raw socket, UDP-Lite, or a datagram to a virtual address reaches the gateway,
 * which refuses and counts it without knowing whose it is. sock:sock_send_length (Linux 6.3) runs
 * in the sender after each send that went well, and what the send put into the device before says
 * where to. On older kernels a kprobe on security_socket_sendmsg runs before each, and the message
 * says it. */

#define KIND_SEND 7
#define IPV4_FAMILY 2
#define IPV6_FAMILY 10
#define PACKET_FAMILY 17

#ifdef AT_SOCK_PROTOCOL
BPF_TABLE("lru_hash", u64, struct seen, sending, 1024); /* socket to where it sent last */

static __always_inline bool has_peer(u64 sk, u16 family)
{
	u64 high = 0, low = 0;

	if (family == IPV4_FAMILY)
		bpf_probe_read_kernel(&low, 4, (void *)(sk + AT_SOCK_DADDR));
	if (family == IPV6_FAMILY) {
		high = word_at(sk + AT_SOCK_DADDR6);
		low = word_at(sk + AT_SOCK_DADDR6 + 8);
	}
	return high || low;
}

/* UDP that names its destination with each datagram is judged by the sendmsg hooks, and UDP-Lite
 * shares its code; once connected, neither is. */
static __always_inline bool may_pass_hooks(u64 sk, u16 family, u16 protocol, bool is_named)
{
	if (family == PACKET_FAMILY)
		return true;
	if (family != IPV4_FAMILY && family != IPV6_FAMILY)
		return false;
	if (protocol == 6 || protocol == 262)
		return false;
	if (protocol == 17 || protocol == 136)
		return !is_named && has_peer(sk, family);
	return true;
}

static __always_inline void begin_send(struct seen *seen, u64 sk, u16 family, u16 protocol)
{
	begin(seen, KIND_SEND, 1);
	seen->reason = (u32)half_at(sk + AT_SOCK_TYPE) << 16 | family;
	if (has_peer(sk, family))
		read_socket(seen, sk);
	seen->protocol = protocol;
}

/* A packet on its way out of the sandbox. Its neighbour is known from the start, so that it is here
 * before the call that sent it ends. */
int saw_leave(struct bpf_raw_tracepoint_args *ctx)
{
	u64 skb = ctx->args[0];
	u64 sk = word_at(skb + AT_SKB_SK);
	struct seen seen = {};

	if (!sk || where_of_socket(sk) != 1 || half_at(sk + AT_SOCK_PROTOCOL) == 6)
		return 0;
	read_packet(&seen, skb);
	sending.update(&sk, &seen);
	return 0;
}

int saw_sent(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	struct seen seen = {}, *packet;
	u16 family, protocol;

	if ((int)ctx->args[1] < 0 || where_of_socket(sk) != 1)
		return 0;
	family = half_at(sk + AT_SOCK_FAMILY);
	protocol = half_at(sk + AT_SOCK_PROTOCOL);
	if (!may_pass_hooks(sk, family, protocol, false))
		return 0;
	begin_send(&seen, sk, family, protocol);
	packet = sending.lookup(&sk);
	if (packet) {
		seen.family = packet->family;
		seen.protocol = packet->protocol;
		seen.source_port = packet->source_port;
		seen.destination_port = packet->destination_port;
		__builtin_memcpy(seen.source, packet->source, sizeof(seen.source));
		__builtin_memcpy(seen.destination, packet->destination, sizeof(seen.destination));
		sending.delete(&sk);
	}
	send(&seen, sizeof(seen));
	return 0;
}

#ifdef AT_FIRST_ARGUMENT
int saw_sending(void *ctx)
{
	u64 sk = word_at(*(u64 *)(ctx + AT_FIRST_ARGUMENT) + AT_SOCKET_SK);
	u64 message = *(u64 *)(ctx + AT_SECOND_ARGUMENT);
	u64 name = word_at(message + AT_MSG_NAME);
	struct seen seen = {};
	u16 family, protocol;

	if (where_of_socket(sk) != 1)
		return 0;
	family = half_at(sk + AT_SOCK_FAMILY);
	protocol = half_at(sk + AT_SOCK_PROTOCOL);
	if (!may_pass_hooks(sk, family, protocol, name != 0))
		return 0;
	begin_send(&seen, sk, family, protocol);
	/* A raw socket's port means nothing, and a packet socket's name is a link's address. */
	if (name && family == IPV4_FAMILY) {
		seen.family = 4;
		bpf_probe_read_kernel(seen.destination, 4, (void *)(name + 4));
	} else if (name && family == IPV6_FAMILY) {
		seen.family = 6;
		bpf_probe_read_kernel(seen.destination, 16, (void *)(name + 8));
	}
	send(&seen, sizeof(seen));
	return 0;
}
#endif
#endif
