/* What does the kernel do with packets of one sandbox, and where was a refused connect called from?
 *
 * For `netns-debug trace --kernel` and `--stacks` alone: never pinned, gone with the process that
 * loaded it, with sends.c. Raw tracepoints, which need neither tracefs nor kprobes; every offset
 * (AT_...) comes from the running kernel's BTF, so no structure of the kernel's is declared here. A
 * field that cannot be read is 0, and an event that is of neither of the two namespaces is not
 * sent. */

#define KIND_DROP 1
#define KIND_STATE 2
#define KIND_SENT_RESET 3
#define KIND_GOT_RESET 4
#define KIND_STACK 5
#define KIND_RETRANSMIT 6
#define FRAMES 32

struct seen {
	u64 time;     /* CLOCK_MONOTONIC, ns */
	u64 location; /* where a packet was dropped */
	u32 kind;
	u32 where;  /* 1 sandbox, 2 gateway */
	u32 reason; /* of a drop; of a state: old << 16 | new */
	u32 pid;
	u16 family;
	u16 protocol;
	u16 source_port;
	u16 destination_port;
	u8 source[16];
	u8 destination[16];
	char comm[16];
};

struct stack {
	struct seen seen;
	u32 kernel_bytes;
	u32 user_bytes;
	u64 kernel[FRAMES];
	u64 user[FRAMES];
};

BPF_TABLE("hash", u64, u32, traced, 8); /* netns cookie to `where` */
BPF_TABLE("array", u32, u64, cgroup, 1);
BPF_TABLE("percpu_array", u32, u64, missed, 1);
BPF_TABLE("percpu_array", u32, struct stack, scratch, 1);

/* Stacks are dear: so many a CPU and tick, and the others are counted as missed. */
#define STACKS_PER_TICK 8
struct pace {
	u64 tick;
	u64 taken;
};

BPF_TABLE("percpu_array", u32, struct pace, paces, 1);
BPF_RINGBUF_OUTPUT(kernel_ring, RING_PAGES);

#ifdef AT_SKB_DEV
static __always_inline u64 word_at(u64 at)
{
	u64 value = 0;

	if (at)
		bpf_probe_read_kernel(&value, sizeof(value), (void *)at);
	return value;
}

static __always_inline u16 half_at(u64 at)
{
	u16 value = 0;

	if (at)
		bpf_probe_read_kernel(&value, sizeof(value), (void *)at);
	return value;
}

static __always_inline u32 where_is(u64 net)
{
	u64 cookie = net ? word_at(net + AT_NET_COOKIE) : 0;
	u32 *where = cookie ? traced.lookup(&cookie) : NULL;

	return where ? *where : 0;
}

static __always_inline u32 where_of_socket(u64 sk)
{
	return sk ? where_is(word_at(sk + AT_SOCK_NET)) : 0;
}

static __always_inline u32 where_of_packet(u64 skb)
{
	u64 dev = word_at(skb + AT_SKB_DEV);
	u32 where = dev ? where_is(word_at(dev + AT_DEV_NET)) : 0;

	return where ? where : where_of_socket(word_at(skb + AT_SKB_SK));
}

static __always_inline void begin(struct seen *seen, u32 kind, u32 where)
{
	seen->time = bpf_ktime_get_ns();
	seen->kind = kind;
	seen->where = where;
	seen->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(seen->comm, sizeof(seen->comm));
}

static __always_inline void send(void *record, u64 size)
{
	int first = 0;
	u64 *count;

	if (kernel_ring.ringbuf_output(record, size, 0) == 0)
		return;
	count = missed.lookup(&first);
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void read_packet(struct seen *seen, u64 skb)
{
	u64 head = word_at(skb + AT_SKB_HEAD);
	u64 at = head + half_at(skb + AT_SKB_NETWORK);
	u8 first = 0, protocol = 0;
	u64 transport;

	if (!head || bpf_probe_read_kernel(&first, 1, (void *)at))
		return;
	if (first >> 4 == 4) {
		seen->family = 4;
		bpf_probe_read_kernel(&protocol, 1, (void *)(at + 9));
		bpf_probe_read_kernel(seen->source, 4, (void *)(at + 12));
		bpf_probe_read_kernel(seen->destination, 4, (void *)(at + 16));
		transport = at + (first & 15) * 4;
	} else if (first >> 4 == 6) {
		seen->family = 6;
		bpf_probe_read_kernel(&protocol, 1, (void *)(at + 6));
		bpf_probe_read_kernel(seen->source, 16, (void *)(at + 8));
		bpf_probe_read_kernel(seen->destination, 16, (void *)(at + 24));
		transport = at + 40;
	} else {
		return;
	}
	seen->protocol = protocol;
	if (protocol == 6 || protocol == 17 || protocol == 136) {
		seen->source_port = __builtin_bswap16(half_at(transport));
		seen->destination_port = __builtin_bswap16(half_at(transport + 2));
	}
}

static __always_inline void read_socket(struct seen *seen, u64 sk)
{
	u16 family = half_at(sk + AT_SOCK_FAMILY);

	seen->protocol = 6;
	seen->source_port = half_at(sk + AT_SOCK_NUM);
	seen->destination_port = __builtin_bswap16(half_at(sk + AT_SOCK_DPORT));
	if (family == 2) {
		seen->family = 4;
		bpf_probe_read_kernel(seen->source, 4, (void *)(sk + AT_SOCK_SADDR));
		bpf_probe_read_kernel(seen->destination, 4, (void *)(sk + AT_SOCK_DADDR));
	} else if (family == 10) {
		seen->family = 6;
		bpf_probe_read_kernel(seen->source, 16, (void *)(sk + AT_SOCK_SADDR6));
		bpf_probe_read_kernel(seen->destination, 16, (void *)(sk + AT_SOCK_DADDR6));
	}
}

int saw_drop(struct bpf_raw_tracepoint_args *ctx)
{
	u32 where = where_of_packet(ctx->args[0]);
	struct seen seen = {};

	if (!where)
		return 0;
	begin(&seen, KIND_DROP, where);
	seen.location = ctx->args[1];
	seen.reason = ctx->args[2];
	read_packet(&seen, ctx->args[0]);
	send(&seen, sizeof(seen));
	return 0;
}

static __always_inline int saw_socket(u64 sk, u32 kind, u32 reason)
{
	u32 where = where_of_socket(sk);
	struct seen seen = {};

	if (!where)
		return 0;
	begin(&seen, kind, where);
	seen.reason = reason;
	read_socket(&seen, sk);
	send(&seen, sizeof(seen));
	return 0;
}

int saw_state(struct bpf_raw_tracepoint_args *ctx)
{
	/* A listener's, or a socket's that never dialled, has no peer: both ends are told as 0. */
	return saw_socket(ctx->args[0], KIND_STATE, ctx->args[1] << 16 | (ctx->args[2] & 0xffff));
}

int saw_got_reset(struct bpf_raw_tracepoint_args *ctx)
{
	return saw_socket(ctx->args[0], KIND_GOT_RESET, 0);
}

int saw_retransmit(struct bpf_raw_tracepoint_args *ctx)
{
	return saw_socket(ctx->args[0], KIND_RETRANSMIT, 0);
}

/* Without a socket the packet that is answered says where: its ends the other way round. */
int saw_sent_reset(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0], skb = ctx->args[1];
	u32 where = where_of_socket(sk);
	struct seen seen = {};

	if (!where && skb)
		where = where_of_packet(skb);
	if (!where)
		return 0;
	begin(&seen, KIND_SENT_RESET, where);
	if (skb)
		read_packet(&seen, skb);
	send(&seen, sizeof(seen));
	return 0;
}
#endif

static __always_inline bool may_take_stack(void)
{
	u64 tick = bpf_jiffies64();
	int first = 0;
	struct pace *pace = paces.lookup(&first);
	u64 *count;

	if (!pace)
		return false;
	if (pace->tick != tick) {
		pace->tick = tick;
		pace->taken = 0;
	}
	if (pace->taken++ < STACKS_PER_TICK)
		return true;
	count = missed.lookup(&first);
	if (count)
		__sync_fetch_and_add(count, 1);
	return false;
}

/* The hooks that refuse may not take a stack; the end of the system call they refused in may. */
int saw_exit(struct bpf_raw_tracepoint_args *ctx)
{
	int first = 0;
	u64 *wanted;
	struct stack *stack;
	int size;

	if ((long)ctx->args[1] != -111)
		return 0;
	wanted = cgroup.lookup(&first);
	if (!wanted || !*wanted || bpf_get_current_cgroup_id() != *wanted)
		return 0;
	stack = may_take_stack() ? scratch.lookup(&first) : NULL;
	if (!stack)
		return 0;
	__builtin_memset(&stack->seen, 0, sizeof(stack->seen));
	stack->seen.time = bpf_ktime_get_ns();
	stack->seen.kind = KIND_STACK;
	stack->seen.where = 1;
	stack->seen.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(stack->seen.comm, sizeof(stack->seen.comm));
	size = bpf_get_stack(ctx, stack->kernel, sizeof(stack->kernel), 0);
	stack->kernel_bytes = size > 0 ? size : 0;
	size = bpf_get_stack(ctx, stack->user, sizeof(stack->user), BPF_F_USER_STACK);
	stack->user_bytes = size > 0 ? size : 0;
	if (kernel_ring.ringbuf_output(stack, sizeof(*stack), 0) != 0) {
		u64 *count = missed.lookup(&first);

		if (count)
			__sync_fetch_and_add(count, 1);
	}
	return 0;
}
