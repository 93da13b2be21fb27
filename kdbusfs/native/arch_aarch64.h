/* Registers and system call numbers of 64-bit Arm.  32-bit Arm callers get no descriptors. */

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

typedef struct user_regs_struct arch_regs;

static const struct abi abi_aarch64 = {
	.compat = false,
	.ioctl = 29,
	.numbers = {
		[CALL_SOCKETPAIR] = 199, [CALL_RECVMSG] = 212, [CALL_CLOSE] = 57, [CALL_CLOSE_RANGE] = 436,
		[CALL_FCNTL] = 25, [CALL_DUP3] = 24, [CALL_MMAP] = 222, [CALL_MUNMAP] = 215,
	},
};

/* For so long the thread may take to fall asleep in its ioctl; it is looked at after pauses that double. */
#define NOTE_LIMIT_NS 500000000ull
#define NOTE_PAUSE_MAX_NS 1000000

/* The text of /proc/TID/syscall, once the thread sleeps: until then that says "running".  Returns whether it is there. */
static inline bool read_syscall(pid_t tid, char *text, size_t size)
{
	struct timespec pause = { 0, 20000 };
	uint64_t limit = kfs_now_ns() + NOTE_LIMIT_NS;

	while (kfs_read_proc(tid, "syscall", text, size) == 0) {
		if (text[0] != 'r')
			return true;
		if (kfs_now_ns() > limit)
			break;
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < NOTE_PAUSE_MAX_NS)
			pause.tv_nsec *= 2;
	}
	return false;
}

/*
 * x0 holds the result once the call is over, and the kernel shows the first argument only while it runs, and sleeps.  The
 * request may be taken up before its thread sleeps, and being seized has woken it once more.
 */
static inline uint64_t arch_first_argument_while_blocked(pid_t tid)
{
	char text[192], *at = text, *end;
	uint64_t argument;
	long number;

	if (!read_syscall(tid, text, sizeof(text)))
		return UINT64_MAX;
	number = strtol(text, &at, 10);
	argument = strtoull(at, &end, 16);
	return number == abi_aarch64.ioctl && end != at ? argument : UINT64_MAX;
}

static inline int arch_get(pid_t tid, arch_regs *regs)
{
	struct iovec io = { regs, sizeof(*regs) };

	if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &io) < 0)
		return -errno;
	return io.iov_len == sizeof(*regs) ? 0 : -EOPNOTSUPP;
}

static inline int arch_set(pid_t tid, const arch_regs *regs)
{
	struct iovec io = { (void *)regs, sizeof(*regs) };

	return ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &io) < 0 ? -errno : 0;
}

static inline const struct abi *arch_abi(pid_t tid, const arch_regs *regs)
{
	uint64_t at = regs->pc - 4, word;

	errno = 0;
	word = (uint64_t)ptrace(PTRACE_PEEKTEXT, tid, (void *)(at & ~7ull), NULL);
	if (errno)
		return NULL;
	if (at & 4)
		word >>= 32;
	return (uint32_t)word == 0xd4000001u ? &abi_aarch64 : NULL; /* svc #0 */
}

static inline bool arch_is_ioctl(const struct abi *abi, const arch_regs *regs)
{
	return (long)regs->regs[8] == abi->ioctl;
}

static inline long arch_result(const struct abi *abi, const arch_regs *regs)
{
	(void)abi;
	return (long)regs->regs[0];
}

/* What the ioctl is going to return. */
static inline void arch_set_result(const struct abi *abi, arch_regs *regs, long result)
{
	(void)abi;
	regs->regs[0] = (uint64_t)result;
}

static inline int arch_first_argument(const struct abi *abi, const arch_regs *regs, uint64_t while_blocked)
{
	(void)abi;
	(void)regs;
	return while_blocked == UINT64_MAX ? -1 : (int)while_blocked;
}

static inline uint64_t arch_third_argument(const struct abi *abi, const arch_regs *regs)
{
	(void)abi;
	return regs->regs[2];
}

static inline void arch_prepare(const struct abi *abi, arch_regs *regs, int number, const uint64_t args[6])
{
	(void)abi;
	regs->pc -= 4;
	memcpy(regs->regs, args, 6 * sizeof(args[0]));
	regs->regs[8] = (uint64_t)number;
}

/* A call that was about to start is dropped, and none is restarted. */
static inline int arch_restore(pid_t tid, const arch_regs *saved)
{
	int none = -1;
	struct iovec io = { &none, sizeof(none) };

	if (ptrace(PTRACE_SETREGSET, tid, (void *)NT_ARM_SYSTEM_CALL, &io) < 0)
		return -errno;
	return arch_set(tid, saved);
}

static inline int arch_read_result(pid_t tid, const struct abi *abi, long *result)
{
	arch_regs regs;
	int error = arch_get(tid, &regs);

	if (error)
		return error;
	*result = arch_result(abi, &regs);
	return 0;
}
