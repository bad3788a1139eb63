/* How many direct connects were refused, where to, and by whom?
 *
 * Three answers, each dearer and less complete than the one before: a total that is exact, a detail
 * by destination that may be evicted, an event that a token bucket may suppress. The hooks run with
 * preemption on (PREEMPT_DYNAMIC and up), so even a per-CPU count needs an atomic add. */

/* jiffies64 compiles to one load, any clock is a call. A tick is long enough: who tried last, and
 * whether the bucket has a token again, is looked at once a tick, so that a flood pays for a count
 * and a comparison. */
static __always_inline void describe(struct detail *detail, u64 tick)
{
	detail->tick = tick;
	detail->last = bpf_ktime_get_coarse_ns();
	detail->pid = bpf_get_current_pid_tgid() >> 32;
	detail->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(detail->comm, sizeof(detail->comm));
}

static __always_inline void count_detail(struct sandbox *box, struct destination *to, u64 tick)
{
	struct detail *seen = details.lookup(to);

	if (!seen) {
		struct detail fresh = {.count = 1};

		describe(&fresh, tick);
		if (details.insert(to, &fresh) == 0) {
			__sync_fetch_and_add(&box->details, 1);
			return;
		}
		/* Another CPU was first. */
		seen = details.lookup(to);
		if (!seen)
			return;
	}
	__sync_fetch_and_add(&seen->count, 1);
	if (seen->tick != tick)
		describe(seen, tick);
}

/* GCRA. Two CPUs may take the same token at once: the rate is then exceeded by one event, and no
 * count depends on it. Once empty, a bucket stays so for this CPU and this tick. */
static __always_inline bool may_tell(struct sandbox *box, u64 tick)
{
	if (box->dry_tick == tick)
		return false;

	u32 number = box->slot;
	struct slot *slot = slots.lookup(&number);

	if (!slot)
		return false;

	u64 now = bpf_ktime_get_coarse_ns();
	u64 paid = slot->paid_until;

	if (paid < now)
		paid = now;
	if (paid > now + box->burst) {
		box->dry_tick = tick;
		return false;
	}
	slot->paid_until = paid + box->interval;
	return true;
}

static __always_inline void tell(struct sandbox *box, const struct destination *to)
{
	u32 number = box->ring;
	void *ring = rings.lookup((int *)&number);
	struct event event = {.to = *to};
	struct process who;

	if (!ring) {
		__sync_fetch_and_add(&box->lost, 1);
		return;
	}
	read_process(&who);
	event.time = bpf_ktime_get_ns();
	event.exe_inode = who.exe_inode;
	event.exe_device = who.exe_device;
	event.pid = who.pid;
	event.tid = who.tid;
	event.ppid = who.ppid;
	event.uid = who.uid;
	__builtin_memcpy(event.comm, who.comm, sizeof(event.comm));
	if (bpf_ringbuf_output(ring, &event, sizeof(event), 0))
		__sync_fetch_and_add(&box->lost, 1);
	else
		__sync_fetch_and_add(&box->events, 1);
}

/* What is neither told nor lost was suppressed: the total says how many, without a count of its
 * own. */
static __always_inline void record_refusal(struct sandbox *box, struct destination *to)
{
	u64 tick = bpf_jiffies64();

	count_detail(box, to, tick);
	if (may_tell(box, tick))
		tell(box, to);
}
