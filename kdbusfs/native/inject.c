/*
 * Puts open files into a client thread that blocks in a FUSE ioctl.
 *
 * The thread is seized while it still blocks, its ioctl is answered, and it is caught by the stop that follows:
 * before it takes a signal and before it runs an instruction of its own.  From there it is made to run a few system
 * calls by the instruction that its ioctl was made with: it makes a socket pair, receives the files from the daemon,
 * which has taken the other end, and closes the sockets.  Then everything is put back and the thread goes on.
 *
 * Memory for these calls is the command struct itself, which the ioctl may write anyway and whose content is stored
 * once more at the end.  The stack is left alone: below it may lie another thread's data (coroutines).  Where the
 * struct is too small the thread maps a page for the while.
 *
 * Every thread here is hostile: it may be killed at any moment, and its siblings may change its memory and its
 * descriptors meanwhile.  What is read of it is only given back to it.  A tracer waits for a bounded time; a thread
 * that did not stop by then is kept in limbo until it does, for ptrace(2) can let go of stopped threads only.
 * Access to its memory alone has no bound (userfaultfd, a mapped file of a FUSE server that does not answer): a tracer
 * has to be one user's own.
 */

#define _GNU_SOURCE
#include "inject.h"
#include "thread.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif
#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200
#endif

#define FIRST_TICK_NS 2000000
#define TICK_NS 10000000
#define LIMIT_NS 2000000000ull
#define FILES_PER_MESSAGE 253 /* SCM_MAX_FD */
#define OUT_MAX 256

enum call {
	CALL_SOCKETPAIR,
	CALL_RECVMSG,
	CALL_CLOSE,
	CALL_CLOSE_RANGE,
	CALL_FCNTL,
	CALL_DUP3,
	CALL_MMAP,
	CALL_MUNMAP,
	CALL_COUNT,
};

/* A system call convention.  `compat`: pointers and longs of 32 bits. */
struct abi {
	bool compat;
	int ioctl;
	int numbers[CALL_COUNT];
};

static uint64_t now_ns(void);
static int read_proc(pid_t tid, const char *name, char *text, size_t size);

#if defined(__x86_64__)
#include "arch_x86_64.h"
#elif defined(__aarch64__)
#include "arch_aarch64.h"
#else
#error "registers and system calls of this machine are not known here"
#endif

/* struct msghdr as the client's kernel entry expects it, and where its members lie. */
struct layout {
	size_t size, control, controllen, flags, word, cmsg_header;
};

static const struct layout layouts[2] = {
	{ sizeof(struct msghdr), offsetof(struct msghdr, msg_control), offsetof(struct msghdr, msg_controllen),
	  offsetof(struct msghdr, msg_flags), 8, 16 },
	{ 28, 16, 20, 24, 4, 12 },
};

/* What the injected call makes that has to be taken away again if nobody waits for its end. */
enum making {
	NOTHING,
	SOCKETS,   /* a pair, told in scratch memory */
	DUPLICATE, /* of a socket */
	PAGE,
	FILES,     /* those of a message, told in scratch memory */
};

/* A thread that is traced by us. */
struct client {
	struct client *next;
	pid_t tid;
	int lost;         /* -ESRCH: dead; -ETIMEDOUT: did not stop in time; no call is made after that */
	bool held;        /* has to be detached or reaped */
	bool zombie;      /* dead, but not to be reaped before its siblings */
	bool caught;      /* its registers and signal mask may differ from the saved ones */
	bool calling;     /* in an injected call */
	enum making making;
	int stops;        /* of the injected call: 1 after its entry, 2 after its end */
	int open[3];      /* sockets of ours among its descriptors, or -1 */
	bool store;       /* the command struct has to be stored again */
	const struct abi *abi;
	arch_regs saved;
	uint64_t sigmask;
	uint64_t noted;
	uint64_t command; /* address of the command struct */
	uint64_t map;     /* address of the page that was mapped for it, or 0 */
	uint64_t scratch;
	size_t scratch_len;
	size_t control_len; /* of the message being received */
	uint64_t flags_address, flags; /* of the return flags, and what to store there at the end; 0: nothing */
	size_t out_len;
	unsigned char out[OUT_MAX];
};

struct kfs_tracer {
	timer_t timer;
	volatile sig_atomic_t seizing;
	sigjmp_buf escape;
	uint64_t deadline;
	struct client *limbo;
};

static pthread_once_t tick_once = PTHREAD_ONCE_INIT;
static int tick_error;

/* Its only purpose is to interrupt the tracer's waitpid(2), and to get it out of a PTRACE_SEIZE that hangs. */
static void on_tick(int sig, siginfo_t *info, void *context)
{
	struct kfs_tracer *tracer = info->si_value.sival_ptr;

	(void)sig;
	(void)context;
	if (info->si_code == SI_TIMER && tracer->seizing) {
		tracer->seizing = 0;
		siglongjmp(tracer->escape, 1);
	}
}

static int tick_signal(void)
{
	return SIGRTMAX - 2;
}

static void install_tick(void)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_tick;
	action.sa_flags = SA_SIGINFO | SA_NODEFER;
	if (sigaction(tick_signal(), &action, NULL) < 0)
		tick_error = errno;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void set_ticking(struct kfs_tracer *tracer, bool on)
{
	struct itimerspec ticks = { .it_interval = { 0, 0 }, .it_value = { 0, 0 } };

	if (on) {
		ticks.it_interval.tv_nsec = TICK_NS;
		ticks.it_value.tv_nsec = FIRST_TICK_NS;
		tracer->deadline = now_ns() + LIMIT_NS;
	}
	timer_settime(tracer->timer, 0, &ticks, NULL);
}

/* Makes the calling thread a tracer.  NULL: errno says why. */
struct kfs_tracer *kfs_tracer_new(void)
{
	struct kfs_tracer *tracer = calloc(1, sizeof(*tracer));
	struct sigevent event;
	sigset_t signals;

	if (!tracer)
		return NULL;
	pthread_once(&tick_once, install_tick);
	sigemptyset(&signals);
	sigaddset(&signals, tick_signal());
	memset(&event, 0, sizeof(event));
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = tick_signal();
	event.sigev_value.sival_ptr = tracer;
#ifdef sigev_notify_thread_id
	event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
#else
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
#endif
	errno = tick_error;
	if (tick_error || pthread_sigmask(SIG_UNBLOCK, &signals, NULL) ||
	    timer_create(CLOCK_MONOTONIC, &event, &tracer->timer) < 0) {
		free(tracer);
		return NULL;
	}
	return tracer;
}

/* Of the thread that made it.  What is left in limbo is let go of by the kernel when that thread ends. */
int kfs_tracer_free(struct kfs_tracer *tracer)
{
	struct client *client;

	timer_delete(tracer->timer);
	while ((client = tracer->limbo)) {
		tracer->limbo = client->next;
		free(client);
	}
	free(tracer);
	return 0;
}

/* The first `size` bytes of a file of /proc/TID, as a string. */
static int read_proc(pid_t tid, const char *name, char *text, size_t size)
{
	char path[40];
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	len = read(fd, text, size - 1);
	close(fd);
	if (len < 0)
		return -ESRCH;
	text[len] = '\0';
	return 0;
}

static bool is_dead(pid_t tid)
{
	char text[128], *state;

	if (read_proc(tid, "stat", text, sizeof(text)) < 0)
		return true;
	state = strrchr(text, ')');
	return state && state[1] == ' ' && (state[2] == 'Z' || state[2] == 'X');
}

/* Whether the line `name` of /proc/TID/status has a hexadecimal or one-digit value with any bit of `mask`; also where
 * that cannot be found out. */
static bool has_status(pid_t tid, const char *name, unsigned long long mask)
{
	char text[4096], *line;

	if (read_proc(tid, "status", text, sizeof(text)) < 0)
		return true;
	line = strstr(text, name);
	return line && strtoull(line + strlen(name), NULL, 16) & mask;
}

/*
 * An execve(2) of a sibling holds the lock that PTRACE_SEIZE needs until this thread is dead, and this thread can
 * die only when its ioctl is answered: so even this wait has to end.  The kernel restarts the call whenever a signal
 * interrupts it; only a jump out of the handler gets it to return.  -EINTR: it did not succeed before the next tick.
 */
static int try_seize(struct kfs_tracer *tracer, pid_t tid, unsigned long options)
{
	long result;

	if (sigsetjmp(tracer->escape, 0))
		/* It may have succeeded in that moment; then the thread is ours. */
		return ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0 ? -EINTR : 0;
	tracer->seizing = 1;
	result = ptrace(PTRACE_SEIZE, tid, NULL, (void *)options);
	tracer->seizing = 0;
	return result < 0 ? -errno : 0;
}

static int seize(struct kfs_tracer *tracer, pid_t tid)
{
	unsigned long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;
	int error;

	while ((error = try_seize(tracer, tid, options)) < 0) {
		if (error == -EINTR) {
			if (has_status(tid, "\nSigPnd:\t", 1ull << (SIGKILL - 1)) || now_ns() > tracer->deadline)
				return -EBUSY;
		} else if ((error == -EPERM || error == -EINVAL) && options & PTRACE_O_SUSPEND_SECCOMP) {
			/* Not privileged to suspend it: a filter might kill the client for calls that it did not make. */
			if (has_status(tid, "\nSeccomp:\t", 3))
				return -EPERM;
			options &= ~(unsigned long)PTRACE_O_SUSPEND_SECCOMP;
		} else {
			return error;
		}
	}
	ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	return 0;
}

/* Waits for the next stop.  Otherwise sets and returns `lost`. */
static int wait_stop(struct kfs_tracer *tracer, struct client *client, int *status)
{
	int dead = 0;

	for (;;) {
		pid_t pid = waitpid(client->tid, status, __WALL | __WNOTHREAD | dead);

		if (pid == client->tid && WIFSTOPPED(*status))
			return 0;
		if (pid == client->tid || (pid < 0 && errno != EINTR)) {
			client->held = false;
			return client->lost = -ESRCH;
		}
		/* The death of a group leader is not reported while a sibling lives. */
		if (dead) {
			client->zombie = true;
			return client->lost = -ESRCH;
		}
		if (is_dead(client->tid))
			dead = WNOHANG; /* it may have died just now */
		else if (now_ns() > tracer->deadline)
			return client->lost = -ETIMEDOUT;
	}
}

/* A request of ptrace(2) failed, thus the thread was killed: reaps it, for others may be waiting for that. */
static int bury(struct kfs_tracer *tracer, struct client *client)
{
	int status;

	while (!wait_stop(tracer, client, &status))
		ptrace(PTRACE_CONT, client->tid, NULL, NULL);
	return client->lost;
}

/*
 * Takes the injected call to its end, the thread being stopped with `status`, or freshly prepared (0).  SIGSTOP cannot
 * be blocked; it is passed on, and the kernel sees to it that the thread stops once it is detached.
 */
static int finish_call(struct kfs_tracer *tracer, struct client *client, int status)
{
	for (;;) {
		int signal = 0;

		if (status && status >> 16 == 0) {
			if (WSTOPSIG(status) != (SIGTRAP | 0x80))
				signal = WSTOPSIG(status);
			else if (++client->stops == 2)
				break;
		}
		if (ptrace(PTRACE_SYSCALL, client->tid, NULL, (void *)(long)signal) < 0)
			return bury(tracer, client);
		if (wait_stop(tracer, client, &status) < 0)
			return client->lost;
	}
	client->calling = false;
	return 0;
}

/* Has the thread make a system call.  Its result, or `lost`. */
static long call(struct kfs_tracer *tracer, struct client *client, enum call which, uint64_t a, uint64_t b, uint64_t c,
		 uint64_t d)
{
	const uint64_t args[6] = { a, b, c, d, which == CALL_MMAP ? UINT64_MAX : 0, 0 };
	arch_regs regs = client->saved;
	long result = 0;

	if (client->lost)
		return client->lost;
	arch_prepare(client->abi, &regs, client->abi->numbers[which], args);
	client->caught = true;
	if (arch_set(client->tid, &regs) < 0)
		return bury(tracer, client);
	client->calling = true;
	client->stops = 0;
	if (finish_call(tracer, client, 0) < 0)
		return client->lost;
	if (arch_read_result(client->tid, client->abi, &result) < 0)
		return bury(tracer, client);
	return result;
}

/* Both get all of the bytes or fail: 0 or -errno. */
static int peek(const struct client *client, uint64_t address, void *buffer, size_t len)
{
	struct iovec local = { buffer, len }, remote = { (void *)(uintptr_t)address, len };
	ssize_t got = process_vm_readv(client->tid, &local, 1, &remote, 1, 0);

	return got == (ssize_t)len ? 0 : got < 0 ? -errno : -EFAULT;
}

static int poke(const struct client *client, uint64_t address, const void *buffer, size_t len)
{
	struct iovec local = { (void *)buffer, len }, remote = { (void *)(uintptr_t)address, len };
	ssize_t put = process_vm_writev(client->tid, &local, 1, &remote, 1, 0);

	return put == (ssize_t)len ? 0 : put < 0 ? -errno : -EFAULT;
}

/* Finds out how the caught thread made its ioctl, and where its command struct is. */
static int identify(struct client *client)
{
	const struct abi *abi;

	if (arch_get(client->tid, &client->saved) < 0)
		return -ESRCH;
	abi = arch_abi(client->tid, &client->saved);
	if (!abi || !arch_is_ioctl(abi, &client->saved))
		return -EOPNOTSUPP;
	client->abi = abi;
	client->command = arch_third_argument(abi, &client->saved);
	return 0;
}

/* Prepares the thread for injected calls, provided that its ioctl returns `expected`. */
static int take_control(struct client *client, long expected)
{
	uint64_t all = UINT64_MAX;
	int error = identify(client);

	if (error)
		return error;
	if (arch_result(client->abi, &client->saved) != expected)
		return -EFAULT; /* the answer could not be copied out */
	if (ptrace(PTRACE_GETSIGMASK, client->tid, (void *)sizeof(all), &client->sigmask) < 0)
		return -ESRCH;
	client->caught = true;
	if (ptrace(PTRACE_SETSIGMASK, client->tid, (void *)sizeof(all), &all) < 0)
		return -ESRCH;
	return 0;
}

/* They come from the memory of the client, and may be any: their difference need not fit. */
static int compare_numbers(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

/* Has the thread close descriptors; -1 stands for none.  By one call if they are neighbours.  They are forgotten before
 * the call: one that ends late must not be made again, for a sibling may have the number by then.  Those of a thread
 * that is lost are kept, in order, until it is found again. */
static void close_numbers(struct kfs_tracer *tracer, struct client *client, int *numbers, int count)
{
	int first = 0, last = count - 1;

	if (client->lost)
		return;
	qsort(numbers, (size_t)count, sizeof(numbers[0]), compare_numbers);
	while (first < count && numbers[first] < 0)
		first++;
	if (last > first && numbers[last] - numbers[first] == last - first) {
		int from = numbers[first], to = numbers[last];

		memset(numbers + first, -1, (size_t)(count - first) * sizeof(numbers[0]));
		if (call(tracer, client, CALL_CLOSE_RANGE, (uint64_t)from, (uint64_t)to, 0, 0) == 0 || client->lost)
			return;
		for (int i = first; i < count; i++)
			numbers[i] = from + i - first;
	}
	for (; first < count && !client->lost; first++) {
		int number = numbers[first];

		numbers[first] = -1;
		call(tracer, client, CALL_CLOSE, (uint64_t)number, 0, 0, 0);
	}
}

/* A call that makes something; what it made is for the caller to keep, or for reclaim() if the thread was lost. */
static long call_making(struct kfs_tracer *tracer, struct client *client, enum making making, enum call which,
			uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	long result;

	client->making = making;
	result = call(tracer, client, which, a, b, c, d);
	if (!client->lost)
		client->making = NOTHING;
	return result;
}

/* Where the msghdr lies in scratch memory; the control data lie before it and reach into it, up to msg_controllen: the
 * kernel has read all of the msghdr before it writes the one, and writes only from there on afterwards. */
static size_t header_at(const struct client *client)
{
	return (client->scratch_len - layouts[client->abi->compat].size) & ~(size_t)7;
}

/* How many descriptors can be received at once. */
static uint32_t capacity(const struct client *client)
{
	const struct layout *layout = &layouts[client->abi->compat];
	size_t room;

	if (client->scratch_len < layout->size)
		return 0;
	room = header_at(client) + layout->controllen;
	if (room < layout->cmsg_header + sizeof(int))
		return 0;
	room = (room - layout->cmsg_header) / sizeof(int);
	return room < FILES_PER_MESSAGE ? (uint32_t)room : FILES_PER_MESSAGE;
}

static int send_files(int socket, const int *files, uint32_t count)
{
	union {
		char bytes[CMSG_SPACE(FILES_PER_MESSAGE * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = { .msg_control = control.bytes, .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), files, count * sizeof(int));
	return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* The descriptor numbers that the recvmsg just done has given; at most `max`.  What the client may have changed of
 * them meanwhile is its own affair. */
static int received_numbers(const struct client *client, int *numbers, uint32_t max)
{
	const struct layout *layout = &layouts[client->abi->compat];
	unsigned char control[16 + FILES_PER_MESSAGE * sizeof(int)];
	uint64_t left = 0, len = 0;
	uint32_t type[2];
	int error;

	error = peek(client, client->scratch + header_at(client) + layout->controllen, &left, layout->word);
	if (!error)
		error = peek(client, client->scratch, control, client->control_len);
	if (error)
		return error;
	if (left == 0)
		return 0; /* no room for any: the control data were not touched */
	memcpy(&len, control, layout->word);
	memcpy(type, control + layout->word, sizeof(type));
	if (type[0] != SOL_SOCKET || type[1] != SCM_RIGHTS || len < layout->cmsg_header || len > client->control_len)
		return -EIO;
	len = (len - layout->cmsg_header) / sizeof(int);
	if (len > max)
		len = max;
	memcpy(numbers, control + layout->cmsg_header, len * sizeof(int));
	return (int)len;
}

/* Has the thread receive `count` files.  How many it got, fewer at its RLIMIT_NOFILE; or -errno. */
static int receive(struct kfs_tracer *tracer, struct client *client, int peer, int socket, const int *files,
		   uint32_t count, int *numbers)
{
	const struct layout *layout = &layouts[client->abi->compat];
	unsigned char header[sizeof(struct msghdr)] = { 0 };
	uint64_t at = client->scratch + header_at(client);
	long result;
	int error;

	client->control_len = layout->cmsg_header + count * sizeof(int);
	memcpy(header + layout->control, &client->scratch, layout->word);
	memcpy(header + layout->controllen, &client->control_len, layout->word);
	error = poke(client, at, header, layout->size);
	if (!error)
		error = send_files(peer, files, count);
	if (error)
		return error;
	result = call_making(tracer, client, FILES, CALL_RECVMSG, (uint64_t)socket, at, MSG_CMSG_CLOEXEC | MSG_DONTWAIT, 0);
	if (client->lost)
		return client->lost;
	return result < 0 ? (int)result : received_numbers(client, numbers, count);
}

/* A descriptor of the daemon's own for what the client has at `number`; -errno. */
static int take_descriptor(const struct client *client, int number)
{
	int pidfd, taken;

	pidfd = kfs_thread_open(client->tid);
	if (pidfd < 0)
		return pidfd;
	taken = kfs_thread_take(pidfd, client->tid, number);
	close(pidfd);
	return taken;
}

/* The daemon's own descriptor of the client's socket `number`.  A sibling may have put something else there, to have
 * the daemon write to it: nothing but an unnamed datagram socket with an unnamed peer will do. */
static int take_socket(const struct client *client, int number)
{
	struct sockaddr_un name = { 0 };
	socklen_t name_len = sizeof(name), type_len = sizeof(int);
	int socket = take_descriptor(client, number), type = 0;

	if (socket < 0)
		return socket;
	if (getpeername(socket, (struct sockaddr *)&name, &name_len) < 0 || name.sun_family != AF_UNIX ||
	    name_len != sizeof(sa_family_t) || getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &type_len) < 0 ||
	    type != SOCK_DGRAM) {
		close(socket);
		return -EBADF;
	}
	return socket;
}

/*
 * Gets the sockets out of the way, for the descriptors are to have the lowest free numbers (LAY-16): a duplicate far
 * above is received from instead.  Where the client's limit has no room for that, one number is lost to the socket.
 * It is not the received descriptor that is moved: closing one asks its file system, which may never answer.
 */
static int clear_numbers(struct kfs_tracer *tracer, struct client *client, uint32_t count)
{
	int *open = client->open;
	int top = open[0] > open[1] ? open[0] : open[1];
	long moved;

	moved = call_making(tracer, client, DUPLICATE, CALL_FCNTL, (uint64_t)open[0], F_DUPFD_CLOEXEC,
			    (uint64_t)top + 2 * count + 16, 0);
	if (client->lost)
		return client->lost;
	if (moved < 0) {
		close_numbers(tracer, client, &open[1], 1);
		return open[0];
	}
	open[2] = (int)moved;
	close_numbers(tracer, client, open, 2);
	return open[2];
}

static int map_scratch(struct kfs_tracer *tracer, struct client *client)
{
	const size_t len = 4096;
	long result = call_making(tracer, client, PAGE, CALL_MMAP, 0, len, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS);

	if (client->lost)
		return client->lost;
	if (result < 0 && result > -4096)
		return (int)result;
	client->map = client->abi->compat ? (uint32_t)result : (uint64_t)result;
	client->scratch = client->map;
	client->scratch_len = len;
	return 0;
}

/* The mount's device and the FUSE node id of an open file, which the kernel knows without asking its server; 0 or
 * -errno. */
static int identify_file(int file, struct statx *mount, uint64_t *nodeid)
{
	uint32_t fuse[3]; /* node id, high half first, and generation */
	union {
		struct file_handle head;
		char bytes[sizeof(struct file_handle) + sizeof(fuse)];
	} handle = { .head = { .handle_bytes = sizeof(fuse) } };
	int unused;

	if (statx(file, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, mount) < 0 ||
	    (name_to_handle_at(file, "", &handle.head, &unused, AT_EMPTY_PATH | AT_HANDLE_FID) < 0 &&
	     name_to_handle_at(file, "", &handle.head, &unused, AT_EMPTY_PATH) < 0))
		return -errno;
	memcpy(fuse, handle.bytes + offsetof(struct file_handle, f_handle), sizeof(fuse));
	*nodeid = (uint64_t)fuse[0] << 32 | fuse[1];
	return 0;
}

/* Whether the client's descriptor `number` is one of node `nodeid` on the mount of `swap`: a sibling may have closed that
 * meanwhile, and opened something else.  Where the kernel does not tell, it is believed. */
static bool is_of_node(const struct client *client, int number, int swap, uint64_t nodeid)
{
	struct statx mount, other;
	uint64_t found = 0, unused;
	int file = take_descriptor(client, number);
	bool same;

	if (file < 0)
		return file != -EBADF;
	if (identify_file(swap, &mount, &unused) < 0)
		same = true;
	else
		same = identify_file(file, &other, &found) == 0 && found == nodeid &&
		       other.stx_dev_major == mount.stx_dev_major && other.stx_dev_minor == mount.stx_dev_minor;
	close(file);
	return same;
}

/* Replaces the descriptor that the ioctl was made with by `number`, and keeps its close-on-exec flag. */
static int swap_descriptor(struct kfs_tracer *tracer, struct client *client, int number, const struct kfs_injection *job)
{
	int old = arch_first_argument(client->abi, &client->saved, client->noted);
	long flags = -EBADF;
	long result = -EBADF;

	if (old >= 0 && old != client->open[0] && old != client->open[1] && old != client->open[2])
		flags = call(tracer, client, CALL_FCNTL, (uint64_t)old, F_GETFD, 0, 0);
	if (flags >= 0 && is_of_node(client, old, job->swap, job->swapped_node))
		result = call(tracer, client, CALL_DUP3, (uint64_t)number, (uint64_t)old,
			      flags & FD_CLOEXEC ? O_CLOEXEC : 0, 0);
	return result < 0 ? (int)result : 0;
}

/* Moves the job's files over, the entries in their order and the one of the swap at last. */
static int transfer(struct kfs_tracer *tracer, struct client *client, struct kfs_injection *job, int peer, int socket)
{
	int numbers[FILES_PER_MESSAGE] = { 0 };
	uint32_t most = FILES_PER_MESSAGE;
	int got;

	while (job->installed + job->refused < job->count) {
		uint32_t done = job->installed + job->refused, room = capacity(client), batch = job->count - done;

		if (batch > room)
			batch = room;
		if (batch > most)
			batch = most;
		got = receive(tracer, client, peer, socket, job->files + done, batch, numbers);
		if (got == -EINVAL && batch > 1) {
			/* The kernel passes no io_uring over a socket, and nothing else together with one. */
			most = 1;
			continue;
		}
		if (got == -EINVAL && batch == 1) {
			*job->slots[done] = got;
			job->refused++;
			continue;
		}
		if (got < 0)
			return got;
		for (int i = 0; i < got; i++, job->installed++)
			*job->slots[done + (uint32_t)i] = numbers[i];
		if ((uint32_t)got < batch)
			return -EMFILE;
	}
	if (job->swap < 0)
		return 0;
	got = receive(tracer, client, peer, socket, &job->swap, 1, numbers);
	if (got < 1)
		return got < 0 ? got : -EMFILE;
	/* Closed together with the sockets, one of which has no number of its own any more or never had. */
	for (int i = 2; i >= 0; i--)
		if (client->open[i] < 0) {
			client->open[i] = numbers[0];
			break;
		}
	got = swap_descriptor(tracer, client, numbers[0], job);
	job->swapped = got == 0;
	return got;
}

static int install(struct kfs_tracer *tracer, struct client *client, struct kfs_injection *job)
{
	uint32_t most = job->count ? job->count : 1;
	int pair[2], peer, error, socket;
	long result;

	client->scratch = client->command;
	client->scratch_len = client->out_len;
	if (capacity(client) < most && map_scratch(tracer, client) < 0 && capacity(client) == 0)
		return client->lost ? client->lost : -ENOMEM;
	client->store = !client->map;
	result = call_making(tracer, client, SOCKETS, CALL_SOCKETPAIR, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0,
			     client->scratch);
	if (result < 0)
		return (int)result;
	error = peek(client, client->scratch, pair, sizeof(pair));
	if (error)
		return error;
	memcpy(client->open, pair, sizeof(pair));
	peer = take_socket(client, pair[1]);
	if (peer < 0)
		return peer;
	socket = job->count ? clear_numbers(tracer, client, job->count) : pair[0];
	error = client->lost ? client->lost : transfer(tracer, client, job, peer, socket);
	close(peer);
	return error;
}

/* Gives the stopped thread back all that is its own, and lets it go. */
static void release(struct kfs_tracer *tracer, struct client *client)
{
	if (client->caught) {
		close_numbers(tracer, client, client->open, 3);
		if (client->map && !client->lost) {
			uint64_t map = client->map;

			client->map = 0;
			call(tracer, client, CALL_MUNMAP, map, 4096, 0, 0);
		}
	}
	if (client->lost)
		return;
	if (client->store && !client->abi)
		identify(client);
	if (client->store && client->abi)
		poke(client, client->command, client->out, client->out_len);
	if (client->flags_address)
		poke(client, client->flags_address, &client->flags, sizeof(client->flags));
	if (client->caught &&
	    (arch_restore(client->tid, &client->saved) < 0 ||
	     ptrace(PTRACE_SETSIGMASK, client->tid, (void *)sizeof(client->sigmask), &client->sigmask) < 0)) {
		bury(tracer, client);
		return;
	}
	if (ptrace(PTRACE_DETACH, client->tid, NULL, NULL) < 0)
		bury(tracer, client);
	else
		client->held = false;
}

static int write_reply(const struct kfs_injection *job)
{
	ssize_t written;

	kfs_store_pages(job->fuse_fd, job->stores, job->store_count);
	do
		written = write(job->fuse_fd, job->reply, job->reply_len);
	while (written < 0 && errno == EINTR);
	return written < 0 ? -errno : 0;
}

/* Entries that have no descriptor get `error`. */
static void fail_rest(struct kfs_injection *job, int error)
{
	for (uint32_t i = job->installed + job->refused; i < job->count; i++)
		*job->slots[i] = error;
}

/*
 * Closes the daemon's own descriptor of the file that was swapped in.  It is done before the client goes on: a close(2)
 * of the client must be the last one, or its connection would outlive it for a moment (CLOSE-1).
 */
static void drop_swap(struct kfs_injection *job)
{
	if (job->swap >= 0)
		close(job->swap);
	job->swap = -1;
}

/* Where the client keeps the file that it has, it finds its pool there before it goes on. */
static void show_unswapped(const struct kfs_injection *job)
{
	if (!job->swapped)
		kfs_store_pages(job->fuse_fd, job->unswapped, job->unswapped_count);
}

/* The part of a job after SEIZE: answers the ioctl, catches the thread, and lets it go. */
static int serve(struct kfs_tracer *tracer, struct client *client, struct kfs_injection *job)
{
	int32_t expected;
	int status, error;

	memcpy(&expected, job->reply + sizeof(struct fuse_out_header), sizeof(expected));
	if (job->swap >= 0)
		client->noted = arch_note_first_argument(client->tid);
	job->answered = 1;
	job->reply_error = -write_reply(job);
	error = wait_stop(tracer, client, &status);
	if (!error && job->reply_error)
		error = -ESRCH; /* its request was gone: it is being killed */
	else if (!error)
		error = take_control(client, expected);
	if (!error)
		error = install(tracer, client, job);
	if (job->installed < job->count) {
		fail_rest(job, error);
		if (!job->reply_error) {
			client->flags_address = job->flags_address;
			client->flags = job->incomplete_flags;
		}
	}
	if (job->count)
		kfs_store_pages(job->fuse_fd, job->stores, job->slot_stores);
	drop_swap(job);
	show_unswapped(job);
	release(tracer, client);
	return error;
}

/*
 * Does one job: answers the ioctl that thread `tid` blocks in with `reply` (a whole FUSE answer), and has the thread go on
 * with the files installed.
 *
 * slots[i] gets the number of files[i], or -errno; then `incomplete_flags` are stored at `flags_address` of the client (0:
 * nowhere) too.  `swap` (-1: none) takes the place of the descriptor that the ioctl was made with; it is
 * closed in every case but -EINVAL, and not put anywhere where that descriptor is not of node `swapped_node` any more.
 * Entries that the kernel refuses to pass on are counted in `refused`; their slots have the -errno.
 * `unswapped` are stored where nothing was swapped.
 * Where the client has copies of its pool, `stores` bring them up to date before the answer; the first `slot_stores` of
 * them are of the pages with the slots, and are made again when those have their numbers.
 * `answered`: the answer was written, and `reply_error` is what that gave; otherwise the thread could not be seized, nothing
 * but closing `swap` was done, and the answer is for the caller of this function to write.  `held`: the thread is in limbo now, and has to
 * be looked after by kfs_tracer_sweep().  Returns 0, or -errno of what went wrong first.
 */
int kfs_inject(struct kfs_tracer *tracer, struct kfs_injection *job)
{
	const size_t head = sizeof(struct fuse_out_header) + sizeof(struct fuse_ioctl_out);
	struct client *client;
	int error;

	job->installed = 0;
	job->refused = 0;
	job->swapped = 0;
	job->answered = 0;
	job->reply_error = 0;
	job->held = 0;
	if (job->reply_len < head)
		return -EINVAL;
	client = calloc(1, sizeof(*client));
	set_ticking(tracer, true);
	error = client ? seize(tracer, job->tid) : -ENOMEM;
	if (error) {
		drop_swap(job);
	} else {
		client->tid = job->tid;
		client->held = true;
		memset(client->open, -1, sizeof(client->open));
		client->out_len = job->reply_len - head < OUT_MAX ? job->reply_len - head : OUT_MAX;
		memcpy(client->out, job->reply + head, client->out_len);
		error = serve(tracer, client, job);
		if (client->held) {
			client->next = tracer->limbo;
			tracer->limbo = client;
			client = NULL;
			job->held = 1;
		}
	}
	set_ticking(tracer, false);
	free(client);
	return error;
}

/* The call that the thread was lost in has ended, and its job is over: nobody would tell the client of what it made. */
static void reclaim(struct kfs_tracer *tracer, struct client *client)
{
	int numbers[FILES_PER_MESSAGE], got;
	enum making making = client->making;
	long result = 0;

	client->making = NOTHING;
	if (arch_read_result(client->tid, client->abi, &result) < 0) {
		bury(tracer, client);
		return;
	}
	if (making == SOCKETS && result == 0 && peek(client, client->scratch, numbers, 2 * sizeof(int)) == 0)
		memcpy(client->open, numbers, 2 * sizeof(int));
	else if (making == DUPLICATE && result >= 0)
		client->open[2] = (int)result;
	else if (making == PAGE && !(result < 0 && result > -4096))
		client->map = client->abi->compat ? (uint32_t)result : (uint64_t)result;
	else if (making == FILES && result >= 0 && (got = received_numbers(client, numbers, FILES_PER_MESSAGE)) > 0)
		close_numbers(tracer, client, numbers, got);
}

/* A thread of the limbo has stopped at last: ends the call that it was in, and lets it go. */
static void resume(struct kfs_tracer *tracer, struct client *client, int status)
{
	client->lost = 0;
	set_ticking(tracer, true);
	if (client->calling)
		finish_call(tracer, client, status);
	if (!client->lost && client->making != NOTHING)
		reclaim(tracer, client);
	release(tracer, client);
	set_ticking(tracer, false);
}

/* Lets go of threads in limbo that have stopped and reaps dead ones.  How many live ones are left, and in `dead` how many
 * that cannot be reaped yet: only for the former the calling thread must not end. */
int kfs_tracer_sweep(struct kfs_tracer *tracer, int *dead)
{
	struct client **link = &tracer->limbo, *client;
	int living = 0;

	*dead = 0;
	while ((client = *link)) {
		int status;
		pid_t pid = waitpid(client->tid, &status, WNOHANG | __WALL | __WNOTHREAD);

		if (pid == client->tid && WIFSTOPPED(status))
			resume(tracer, client, status);
		else if (pid != 0)
			client->held = false;
		else
			client->zombie = is_dead(client->tid);
		if (client->held) {
			*(client->zombie ? dead : &living) += 1;
			link = &client->next;
		} else {
			*link = client->next;
			free(client);
		}
	}
	return living;
}
