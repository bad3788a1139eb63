/* What crosses between the hooks, and between kernel and user space: fixed-width fields only, no
 * padding that is not named. netns_runtime/probes/records.py holds the same layouts for Python. */

#define EVENT_COMM 16

/* An address in network byte order. An IPv4 address is ::ffff:a.b.c.d here, whichever family the
 * socket has, because that is what the kernel dials. */
struct address {
	u64 high;
	u64 low;
};

/* Whole words only: the kernel hashes and compares keys by words, and a word that was stored in
 * parts cannot be forwarded from the store buffer. */
struct destination {
	u64 cookie; /* of the network namespace: the sandbox */
	struct address address;
	u64 kind; /* port, protocol << 16, reason << 24 */
};

struct detail {
	u64 count;
	u64 tick; /* jiffies of `last` */
	u64 last; /* CLOCK_MONOTONIC, to the tick */
	u32 pid;
	u32 uid;
	char comm[EVENT_COMM];
};

/* One per sandbox and CPU. The first part is what user space configures, the rest is counted. */
struct sandbox {
	u64 cookie; /* 0: nobody's */
	u32 flags;
	u16 slot;
	u16 ring;
	u64 interval; /* ns that one event costs */
	u64 burst;    /* ns of events that may be saved up */
	u64 dry_tick; /* jiffies at which the bucket was last seen empty */
	u64 refused[REASONS];
	u64 events;
	u64 lost;    /* the ring was full */
	u64 details; /* entries made in `details` */
};

/* One per registered sandbox: whose it is, and the token bucket that all CPUs share. */
struct slot {
	u64 cookie;
	u64 paid_until; /* CLOCK_MONOTONIC: the theoretical arrival time of GCRA */
	u64 started;	/* with pid: the supervisor, in the clock of /proc/PID/stat */
	u32 pid;
	u32 reserved;
};

struct event {
	u64 time; /* CLOCK_MONOTONIC, ns */
	u64 exe_inode;
	u32 exe_device;
	u32 pid;
	u32 tid;
	u32 ppid;
	u32 uid;
	u32 reserved;
	struct destination to;
	char comm[EVENT_COMM];
};

struct flow {
	u64 cookie;
	struct address address;
	u64 ports; /* destination, source << 16 */
};

struct listed_key {
	u64 cookie;
	struct address address;
	u64 port; /* 0: any */
};

struct owner {
	u64 exe_inode;
	u64 time; /* CLOCK_MONOTONIC, to the tick */
	u32 exe_device;
	u32 pid;
	u32 uid;
	u32 reserved;
	char comm[EVENT_COMM];
};

struct dialling {
	struct flow flow;
	struct owner owner;
};

/* A sandbox lives in the slot that its cookie names modulo SANDBOXES, a power of two, or, if that
 * was taken, in one that `displaced` names. Cookies are handed out in sequence, so that is rare,
 * and the usual look-up is an index and a comparison: a hash look-up is five calls, each of which
 * costs a mitigated return (measured: 30 ns of 90). */
BPF_TABLE("percpu_array", u32, struct sandbox, sandboxes, SANDBOXES);
BPF_TABLE("hash", u64, u32, displaced, SANDBOXES);
BPF_TABLE("hash", u32, struct slot, slots, SANDBOXES);
/* Which sandbox has which ring; only user space looks. */
BPF_TABLE("hash", u32, u64, lent, SANDBOXES);
BPF_TABLE("lru_hash", struct destination, struct detail, details, DETAILS);
BPF_TABLE("percpu_array", u32, u64, unknown, 1);
BPF_TABLE("hash", struct listed_key, u8, listed, LISTED);
BPF_TABLE("array", u32, u32, listings, SANDBOXES);
BPF_TABLE("lru_hash", u64, struct dialling, dialling, DIALLING);
BPF_TABLE("lru_hash", struct flow, struct owner, owners, OWNERS);
BPF_RINGBUF_OUTPUT(ring_form, RING_BYTES / PAGE_SIZE);
BPF_ARRAY_OF_MAPS(rings, "ring_form", SANDBOXES);
