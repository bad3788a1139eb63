/* The four hooks: connect and sendmsg, IPv4 and IPv6. Each says where to; judge() says whether. */

static __always_inline u8 reason_of(u32 protocol)
{
	if (protocol == IPPROTO_TCP)
		return REASON_TCP;
	return protocol == IPPROTO_UDP ? REASON_UDP : REASON_OTHER;
}

static __always_inline int refuse(void)
{
	bpf_set_retval(-ECONNREFUSED);
	return 0;
}

static __always_inline int refuse_unknown(void)
{
	int first = 0;
	u64 *count = unknown.lookup(&first);

	if (count)
		__sync_fetch_and_add(count, 1);
	return refuse();
}

static __always_inline struct sandbox *sandbox_of(u64 cookie)
{
	u32 slot = cookie & (SANDBOXES - 1);
	struct sandbox *box = sandboxes.lookup(&slot);
	u32 *elsewhere;

	if (box && box->cookie == cookie)
		return box;
	elsewhere = displaced.lookup(&cookie);
	if (!elsewhere)
		return NULL;
	slot = *elsewhere;
	box = sandboxes.lookup(&slot);
	return box && box->cookie == cookie ? box : NULL;
}

static __always_inline int judge(struct bpf_sock_addr *ctx, struct address to, bool is_connect)
{
	u64 cookie = bpf_get_netns_cookie(ctx);
	struct sandbox *box = sandbox_of(cookie);
	u32 protocol = ctx->protocol;
	u16 port = ntohs((u16)ctx->user_port);
	u8 reason;

	if (!box)
		return refuse_unknown();
	/* MPTCP is 262 where the kernel calls the hook for the outer socket. */
	if (protocol == IPPROTO_MPTCP)
		protocol = IPPROTO_TCP;
	if (is_own(to))
		return 1;
	/* getaddrinfo(3) connects a UDP socket to each address it found, only to sort them by RFC
	 * 6724; nothing is sent. Datagrams to virtual addresses are refused, and counted, by the
	 * gateway. */
	if (is_connect && protocol == IPPROTO_UDP && is_virtual(to))
		return 1;
	if (is_served(to, port, protocol, box->flags) ||
	    (protocol == IPPROTO_TCP && (box->flags & FLAG_REDIRECT) &&
	     is_listed(cookie, box->slot, to, port))) {
		if (protocol == IPPROTO_TCP)
			note_dialling(ctx, cookie, to, port);
		return 1;
	}
	reason = reason_of(protocol);
	__sync_fetch_and_add(&box->refused[reason & (REASONS - 1)], 1);

	struct destination destination = {
	    .cookie = cookie,
	    .address = to,
	    .kind = port | (u64)(u8)protocol << 16 | (u64)reason << 24,
	};

	record_refusal(box, &destination);
	return refuse();
}

static __always_inline int judge_ipv4(struct bpf_sock_addr *ctx, bool is_connect)
{
	struct address to = {.low = PAIR(htonl(0xffff), ctx->user_ip4)};

	return judge(ctx, to, is_connect);
}

static __always_inline int judge_ipv6(struct bpf_sock_addr *ctx, bool is_connect)
{
	struct address to = {
	    .high = PAIR(ctx->user_ip6[0], ctx->user_ip6[1]),
	    .low = PAIR(ctx->user_ip6[2], ctx->user_ip6[3]),
	};

	return judge(ctx, to, is_connect);
}

int refuse_connect4(struct bpf_sock_addr *ctx)
{
	return judge_ipv4(ctx, true);
}

int refuse_connect6(struct bpf_sock_addr *ctx)
{
	return judge_ipv6(ctx, true);
}

int refuse_send4(struct bpf_sock_addr *ctx)
{
	return judge_ipv4(ctx, false);
}

int refuse_send6(struct bpf_sock_addr *ctx)
{
	return judge_ipv6(ctx, false);
}
