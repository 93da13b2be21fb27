/* Registers and system call numbers of x86-64, for 64-bit callers and for callers of the i386 gate. */

#include <asm/unistd.h>
#include <errno.h>
#include <sys/ptrace.h>
#include <sys/user.h>

typedef struct user_regs_struct arch_regs;

static const struct abi abi_x86_64 = {
	.compat = false,
	.ioctl = 16,
	.numbers = {
		[CALL_SOCKETPAIR] = 53, [CALL_RECVMSG] = 47, [CALL_CLOSE] = 3, [CALL_CLOSE_RANGE] = 436,
		[CALL_FCNTL] = 72, [CALL_DUP3] = 292, [CALL_MMAP] = 9, [CALL_MUNMAP] = 11,
	},
};

static const struct abi abi_i386 = {
	.compat = true,
	.ioctl = 54,
	.numbers = {
		[CALL_SOCKETPAIR] = 360, [CALL_RECVMSG] = 372, [CALL_CLOSE] = 6, [CALL_CLOSE_RANGE] = 436,
		[CALL_FCNTL] = 221, [CALL_DUP3] = 330, [CALL_MMAP] = 192, [CALL_MUNMAP] = 91,
	},
};

/* What has to be known of the ioctl while the thread still blocks in it: nothing, its registers keep it. */
static inline uint64_t arch_first_argument_while_blocked(pid_t tid)
{
	(void)tid;
	return 0;
}

static inline int arch_get(pid_t tid, arch_regs *regs)
{
	return ptrace(PTRACE_GETREGS, tid, NULL, regs) < 0 ? -errno : 0;
}

static inline int arch_set(pid_t tid, const arch_regs *regs)
{
	return ptrace(PTRACE_SETREGS, tid, NULL, regs) < 0 ? -errno : 0;
}

/* The calling convention by the instruction that entered the kernel: a 64-bit program may use int $0x80 too. */
static inline const struct abi *arch_abi(pid_t tid, const arch_regs *regs)
{
	uint64_t word;

	errno = 0;
	word = (uint64_t)ptrace(PTRACE_PEEKTEXT, tid, (void *)(regs->rip - 2), NULL);
	if (errno)
		return NULL;
	switch (word & 0xffff) {
	case 0x050f:
		return &abi_x86_64;
	case 0x80cd:
		return &abi_i386;
	default:
		return NULL;
	}
}

static inline bool arch_is_ioctl(const struct abi *abi, const arch_regs *regs)
{
	return (long)regs->orig_rax == abi->ioctl;
}

static inline long arch_result(const struct abi *abi, const arch_regs *regs)
{
	return abi->compat ? (int32_t)regs->rax : (long)regs->rax;
}

/* What the ioctl is going to return. */
static inline void arch_set_result(const struct abi *abi, arch_regs *regs, long result)
{
	regs->rax = abi->compat ? (uint32_t)result : (unsigned long long)result;
}

static inline int arch_first_argument(const struct abi *abi, const arch_regs *regs, uint64_t while_blocked)
{
	(void)while_blocked;
	return (int)(abi->compat ? regs->rbx : regs->rdi);
}

static inline uint64_t arch_third_argument(const struct abi *abi, const arch_regs *regs)
{
	return abi->compat ? (uint32_t)regs->rdx : regs->rdx;
}

/* Without a call in orig_rax the kernel neither restarts one nor runs one that was about to start. */
static inline void arch_forget_call(arch_regs *regs)
{
	regs->orig_rax = (unsigned long long)-1;
}

/* Makes `regs` enter the kernel again by the instruction before it, for call `number`. */
static inline void arch_prepare(const struct abi *abi, arch_regs *regs, int number, const uint64_t args[6])
{
	arch_forget_call(regs);
	regs->rip -= 2;
	regs->rax = (unsigned long long)number;
	if (abi->compat) {
		regs->rbx = args[0];
		regs->rcx = args[1];
		regs->rdx = args[2];
		regs->rsi = args[3];
		regs->rdi = args[4];
		regs->rbp = args[5];
	} else {
		regs->rdi = args[0];
		regs->rsi = args[1];
		regs->rdx = args[2];
		regs->r10 = args[3];
		regs->r8 = args[4];
		regs->r9 = args[5];
	}
}

/* Puts the registers of the ioctl's return back, whatever call the thread is in. */
static inline int arch_restore(pid_t tid, const arch_regs *saved)
{
	arch_regs regs = *saved;

	arch_forget_call(&regs);
	return arch_set(tid, &regs);
}

static inline int arch_read_result(pid_t tid, const struct abi *abi, long *result)
{
	long value;

	errno = 0;
	value = ptrace(PTRACE_PEEKUSER, tid, (void *)offsetof(struct user_regs_struct, rax), NULL);
	if (errno)
		return -errno;
	*result = abi->compat ? (int32_t)value : value;
	return 0;
}
