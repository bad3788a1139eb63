/* Whose flow is this?
 *
 * The proxy sees a source port; the process that dialled is known in connect(2), where an
 * auto-bound socket has no port yet. So the hook notes the process under the socket's cookie, and
 * the same cgroup's egress program completes the note when the SYN goes out, with the port and
 * before anybody can accept. That also holds for TCP fast open, where the SYN waits for the first
 * send, and for MPTCP, where both run on the subflow.
 *
 * Egress, because the kernel skips it for sockets of other cgroups after one comparison. The host
 * would pay for the alternatives at each connect: sock_ops 150 ns (measured; every call site
 * prepares a context first), the tracepoint sock:inet_sock_set_state for every change of state, and
 * that one runs at SYN_SENT before the port is chosen. */

static __always_inline void note_dialling(struct bpf_sock_addr *ctx, u64 cookie, struct address to,
					  u16 port)
{
	u64 socket = bpf_get_socket_cookie(ctx);
	struct dialling note = {};
	struct process who;

	read_process(&who);
	note.flow.cookie = cookie;
	note.flow.address = to;
	note.flow.ports = port;
	note.owner.exe_inode = who.exe_inode;
	note.owner.exe_device = who.exe_device;
	note.owner.time = bpf_ktime_get_coarse_ns();
	note.owner.pid = who.pid;
	note.owner.uid = who.uid;
	__builtin_memcpy(note.owner.comm, who.comm, sizeof(note.owner.comm));
	dialling.update(&socket, &note);
}

int own_flow(struct __sk_buff *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk || sk->state != BPF_TCP_SYN_SENT)
		return 1;

	u64 socket = bpf_get_socket_cookie(ctx);
	struct dialling *found = dialling.lookup(&socket);

	if (!found)
		return 1;

	struct dialling note = *found;

	note.flow.ports |= sk->src_port << 16;
	owners.update(&note.flow, &note.owner);
	dialling.delete(&socket);
	return 1;
}
