/* Which process is this? */

struct process {
	u64 exe_inode;
	u32 exe_device;
	u32 pid;
	u32 tid;
	u32 ppid;
	u32 uid;
	char comm[EVENT_COMM];
};

#ifdef AT_TASK_MM
static __always_inline void *pointer_at(void *base, u32 offset)
{
	void *value = NULL;

	bpf_probe_read_kernel(&value, sizeof(value), base + offset);
	return value;
}

/* Every offset comes from the running kernel's BTF. A kernel thread has no mm: its reads fail and
 * leave zero, which user space tells as "unknown". */
static __always_inline void read_executable(struct process *who)
{
	void *task = (void *)bpf_get_current_task();
	void *parent = pointer_at(task, AT_TASK_PARENT);
	void *mm = pointer_at(task, AT_TASK_MM);
	void *file = pointer_at(mm, AT_MM_EXE_FILE);
	void *inode = pointer_at(file, AT_FILE_INODE);
	void *super = pointer_at(inode, AT_INODE_SUPER);

	bpf_probe_read_kernel(&who->ppid, sizeof(who->ppid), parent + AT_TASK_TGID);
	bpf_probe_read_kernel(&who->exe_inode, sizeof(who->exe_inode), inode + AT_INODE_NUMBER);
	bpf_probe_read_kernel(&who->exe_device, sizeof(who->exe_device), super + AT_SUPER_DEVICE);
}
#else
static __always_inline void read_executable(struct process *who)
{
}
#endif

static __always_inline void read_process(struct process *who)
{
	u64 id = bpf_get_current_pid_tgid();

	__builtin_memset(who, 0, sizeof(*who));
	who->pid = id >> 32;
	who->tid = id;
	who->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(who->comm, sizeof(who->comm));
	read_executable(who);
}
