/* May this destination be reached directly? */

/* Two words of an address, as they lie in memory. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define PAIR(first, second) ((u64)(u32)(first) | (u64)(u32)(second) << 32)
#define FIRST(pair) ((u32)(pair))
#define SECOND(pair) ((u32)((pair) >> 32))
#else
#define PAIR(first, second) ((u64)(u32)(second) | (u64)(u32)(first) << 32)
#define FIRST(pair) ((u32)((pair) >> 32))
#define SECOND(pair) ((u32)(pair))
#endif

static __always_inline bool is_ipv4(struct address to)
{
	return to.high == 0 && FIRST(to.low) == htonl(0xffff);
}

/* The unspecified address is the local host to connect(2) and sendto(2), in both families. */
static __always_inline bool is_own(struct address to)
{
	u32 last = SECOND(to.low);

	if (is_ipv4(to))
		return (last & htonl(0xff000000)) == htonl(0x7f000000) || last == 0 ||
		       last == htonl(SANDBOX_IPV4);
	if (to.high == PAIR(htonl(SANDBOX_IPV6_0), htonl(SANDBOX_IPV6_1)) &&
	    to.low == PAIR(htonl(SANDBOX_IPV6_2), htonl(SANDBOX_IPV6_3)))
		return true;
	return to.high == 0 && (to.low == 0 || to.low == PAIR(0, htonl(1)));
}

static __always_inline bool is_virtual(struct address to)
{
	if (is_ipv4(to))
		return (SECOND(to.low) & htonl(VIRTUAL_IPV4_MASK)) == htonl(VIRTUAL_IPV4);
	return to.high == PAIR(htonl(VIRTUAL_IPV6_0), htonl(VIRTUAL_IPV6_1));
}

/* What leads to the proxy or the resolver, as the sandbox's flags say. */
static __always_inline bool is_served(struct address to, u16 port, u8 protocol, u32 flags)
{
	bool tcp = protocol == IPPROTO_TCP, udp = protocol == IPPROTO_UDP;

	if (is_ipv4(to) && SECOND(to.low) == htonl(GATEWAY_IPV4)) {
		if (port == PROXY_PORT)
			return tcp && (flags & FLAG_PROXY);
		if (port == DNS_PORT)
			return (tcp || udp) && (flags & FLAG_RESOLVER);
		return false;
	}
	return tcp && (flags & FLAG_REDIRECT) && is_virtual(to);
}

/* Literal addresses that the policy lists, at one port or, as port 0, at any. Most sandboxes list
 * none, and then the array says so at the price of an index. */
static __always_inline bool is_listed(u64 cookie, u32 slot, struct address to, u16 port)
{
	struct listed_key key = {.cookie = cookie, .address = to, .port = port};
	u32 *entries = listings.lookup(&slot);

	if (!entries || !*entries)
		return false;
	if (listed.lookup(&key))
		return true;
	key.port = 0;
	return listed.lookup(&key) != NULL;
}
