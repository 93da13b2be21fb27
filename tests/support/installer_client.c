/* Clients of installer_daemon.py: each takes descriptors by ioctl and checks what it got.  usage: client DEVICE RESULTS
 * MODE [ARGUMENT...].  Exit status 0: all was right. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct command {
	uint64_t slot;
	uint32_t pipes, memfds;
	int32_t result;
	uint32_t mode;
	uint64_t token;
	uint64_t descriptors; /* of the daemon */
	uint64_t node;
	uint64_t outstanding;
	uint64_t delay; /* ms */
	uint64_t flags;
};

enum { SWAP = 1, KEPT = 2, STATS = 4 };
enum { SLOT_SIZE = 8192, SLOTS = 64, MAX_FILES = 400, LIMIT = 2048 };

#ifdef ONE_WAY
#define COMMAND _IOW(0x95, 0x31, struct command) /* the daemon writes what it answers into our memory */
#else
#define COMMAND _IOWR(0x95, 0x31, struct command)
#endif

#define CHECK(condition, ...)                                                   \
	do {                                                                    \
		if (!(condition)) {                                             \
			fprintf(stderr, "line %d: %s: ", __LINE__, #condition); \
			fprintf(stderr, __VA_ARGS__);                           \
			fputc('\n', stderr);                                    \
			_exit(1);                                               \
		}                                                               \
	} while (0)

static const char *device, *results_path;
static unsigned char *results;
static int fd;

static int32_t number_of(unsigned slot, unsigned index)
{
	return ((volatile int32_t *)(results + slot * SLOT_SIZE))[index];
}

static uint64_t inode_of(unsigned slot, unsigned index)
{
	return ((volatile uint64_t *)(results + slot * SLOT_SIZE + 2048))[index];
}

static unsigned count_open(void)
{
	unsigned count = 0;

	for (int number = 0; number < LIMIT; number++)
		count += fcntl(number, F_GETFD) >= 0;
	return count;
}

/* The number at `index` stands for the right file, close-on-exec. */
static void check_entry(unsigned slot, unsigned index)
{
	int number = number_of(slot, index), flags;
	struct stat st;

	CHECK(number >= 0, "entry %u of slot %u is %d", index, slot, number);
	flags = fcntl(number, F_GETFD);
	CHECK(flags == FD_CLOEXEC, "flags of %d: %d, errno %d", number, flags, errno);
	CHECK(fstat(number, &st) == 0 && st.st_ino == inode_of(slot, index), "entry %u: inode %llu is not %llu", index,
	      (unsigned long long)st.st_ino, (unsigned long long)inode_of(slot, index));
}

static void check_answer(const struct command *command, uint64_t token, int got, int32_t result)
{
	if (result < 0)
		CHECK(got == -1 && errno == -result, "%d, errno %d, wanted %d", got, errno, result);
	else
		CHECK(got == result, "%d, errno %d, wanted %d", got, errno, result);
	CHECK(command->token == token + 1, "token %llx", (unsigned long long)command->token);
}

/* One ioctl with all its checks.  `exact`: nobody else opens files, so the numbers have to be the lowest free ones. */
static void take(unsigned slot, unsigned pipes, unsigned memfds, int32_t result, unsigned mode, int exact)
{
	struct command command = { .slot = slot, .pipes = pipes, .memfds = memfds, .result = result, .mode = mode };
	unsigned count = pipes + memfds, next = 0;
	int got, expected[MAX_FILES + 1];

	command.token = ((uint64_t)(unsigned)rand() << 20) + slot;
	command.flags = 0x100;
	for (int number = 0; exact && next < count; number++)
		if (fcntl(number, F_GETFD) < 0)
			expected[next++] = number;
	uint64_t token = command.token;
	errno = 0;
	got = ioctl(fd, COMMAND, &command);
	check_answer(&command, token, got, result);
	CHECK(command.flags == 0x100, "flags %llx", (unsigned long long)command.flags);
	for (unsigned index = 0; index < count; index++) {
		check_entry(slot, index);
		if (exact)
			CHECK(number_of(slot, index) == expected[index], "entry %u is %d, lowest free was %d", index,
			      number_of(slot, index), expected[index]);
	}
	for (unsigned index = 0; index < count; index++)
		close(number_of(slot, index));
}

static const int32_t rotation[] = { 0, 7, -EINVAL, -EINTR };

static void basic(void)
{
	static const unsigned counts[][2] = { { 1, 0 },	  { 0, 1 },   { 2, 0 },	  { 1, 2 },	{ 9, 0 },   { 10, 0 },
					      { 11, 0 },  { 30, 5 },  { 252, 0 }, { 253, 0 },	{ 254, 0 }, { 253, 128 },
					      { 12, 0 },  { 13, 0 } };
	unsigned before;

	/* numbers with holes between them */
	for (int number = 6; number < 30; number += 3)
		CHECK(fcntl(fd, F_DUPFD_CLOEXEC, number) >= 0, "dup");
	before = count_open();
	for (unsigned i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
		for (unsigned r = 0; r < 4; r++) {
			take(0, counts[i][0], counts[i][1], rotation[r], 0, 1);
			CHECK(count_open() == before, "%u descriptors, %u before", count_open(), before);
		}
}

struct worker {
	unsigned slot, times;
};

static void *work(void *argument)
{
	struct worker *worker = argument;
	sigset_t mask;

	for (unsigned i = 0; i < worker->times; i++) {
		take(worker->slot, 1 + i % 3, i % 2, rotation[i % 4], 0, 0);
		pthread_sigmask(SIG_SETMASK, NULL, &mask);
		CHECK(sigisemptyset(&mask), "signal mask changed");
	}
	return NULL;
}

static void threads(unsigned count, unsigned times)
{
	pthread_t thread[SLOTS];
	struct worker workers[SLOTS];
	unsigned before = count_open();
	sigset_t set, old;

	for (unsigned i = 0; i < count; i++) {
		workers[i] = (struct worker){ i, times };
		CHECK(!pthread_create(&thread[i], NULL, work, &workers[i]), "thread");
	}
	/* signals are for the workers */
	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	for (unsigned i = 0; i < count; i++)
		pthread_join(thread[i], NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	CHECK(count_open() == before, "%u descriptors, %u before", count_open(), before);
}

static volatile unsigned received, ticks;

static void on_queued(int signal)
{
	(void)signal;
	__atomic_fetch_add(&received, 1, __ATOMIC_SEQ_CST);
}

static void on_alarm(int signal)
{
	(void)signal;
	__atomic_fetch_add(&ticks, 1, __ATOMIC_SEQ_CST);
}

static volatile int done;

static void *send_queued(void *sent)
{
	union sigval value = { 0 };

	while (!done) {
		if (sigqueue(getpid(), SIGRTMIN, value) == 0)
			__atomic_fetch_add((unsigned *)sent, 1, __ATOMIC_SEQ_CST);
		usleep(50);
	}
	return NULL;
}

static void signals(unsigned count, unsigned times)
{
	struct itimerval every = { { 0, 1000 }, { 0, 1000 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction action = { .sa_handler = on_queued, .sa_flags = SA_RESTART };
	sigset_t set, old;
	pthread_t sender;
	unsigned sent = 0, rounds = 0;

	sigaction(SIGRTMIN, &action, NULL);
	action.sa_handler = on_alarm;
	sigaction(SIGALRM, &action, NULL);
	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	pthread_create(&sender, NULL, send_queued, &sent);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
	/* until enough of both came meanwhile, at whatever rate */
	do
		threads(count, times);
	while (++rounds < 100 && (ticks <= 100 || __atomic_load_n(&sent, __ATOMIC_SEQ_CST) <= 100));
	done = 1;
	pthread_join(sender, NULL);
	setitimer(ITIMER_REAL, &never, NULL);
	for (int i = 0; i < 12000 && received < sent; i++)
		usleep(10000);
	CHECK(sent == received && sent > 100 && ticks > 100, "%u sent, %u received, %u ticks in %u rounds", sent, received,
	      ticks, rounds);
}

static void *loop_for_ever(void *argument)
{
	for (;;)
		take((unsigned)(uintptr_t)argument % SLOTS, 2, 1, 0, 0, 0);
	return NULL;
}

/* Stopped and continued in the middle of it all. */
static void stops(unsigned count, unsigned times)
{
	volatile int *enough = mmap(NULL, sizeof(*enough), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child = fork();
	int status;

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		do
			threads(count, times);
		while (!*enough);
		_exit(0);
	}
	for (int i = 0; i < 40; i++) {
		usleep(3000 + rand() % 3000);
		kill(child, SIGSTOP);
		CHECK(waitpid(child, &status, WUNTRACED) == child, "wait");
		CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "status %x in round %d", status, i);
		usleep(2000);
		CHECK(waitpid(child, &status, WNOHANG | WUNTRACED) == 0, "it runs on");
		kill(child, SIGCONT);
	}
	*enough = 1;
	CHECK(waitpid(child, &status, 0) == child && status == 0, "status %x", status);
}

static void seccomp(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socketpair, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_recvmsg, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close_range, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_dup3, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };
	int status;
	pid_t child;

	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "filter");
	for (int i = 0; i < 20; i++)
		take(0, 1 + i, 0, rotation[i % 4], 0, 1);
	/* and the filter is in force again */
	child = fork();
	if (child == 0) {
		syscall(SYS_dup3, 0, 1, 0);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "%x", status);
}

/* A debugger has the process already: it gets its answer, and no descriptors. */
static void traced(void)
{
	struct command command = { .pipes = 3, .token = 5, .flags = 0x100 };
	unsigned before;
	int status;
	pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		CHECK(!ptrace(PTRACE_TRACEME, 0, NULL, NULL), "traceme");
		raise(SIGSTOP);
		before = count_open();
		check_answer(&command, 5, ioctl(fd, COMMAND, &command), 0);
		CHECK(command.flags == 0x101, "flags %llx", (unsigned long long)command.flags);
		for (int i = 0; i < 3; i++)
			CHECK(number_of(0, i) == -EPERM, "entry %d is %d", i, number_of(0, i));
		CHECK(count_open() == before, "descriptors");
		command = (struct command){ .token = 5, .mode = SWAP, .flags = 0x100 };
		check_answer(&command, 5, ioctl(fd, COMMAND, &command), 0);
		CHECK(command.flags == 0x100, "flags %llx", (unsigned long long)command.flags);
		CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR, "swapped");
		_exit(0);
	}
	for (;;) {
		CHECK(waitpid(child, &status, 0) == child, "wait");
		if (!WIFSTOPPED(status))
			break;
		ptrace(PTRACE_CONT, child, NULL, (void *)(long)(WSTOPSIG(status) == SIGSTOP ? 0 : WSTOPSIG(status)));
	}
	CHECK(status == 0, "status %x", status);
}

/* With room for `room` descriptors, `wanted` are asked for: the first ones get in, the rest fails. */
static void limited(unsigned room, unsigned wanted, unsigned fits)
{
	struct command command = { .pipes = wanted, .token = 9, .flags = 0x100 };
	unsigned before = count_open(), i;
	struct rlimit limit, old;
	int top = 0;

	while (fcntl(top, F_GETFD) >= 0)
		top++;
	CHECK(before == (unsigned)top, "numbers with holes");
	getrlimit(RLIMIT_NOFILE, &old);
	limit = old;
	limit.rlim_cur = (rlim_t)top + room;
	setrlimit(RLIMIT_NOFILE, &limit);
	check_answer(&command, 9, ioctl(fd, COMMAND, &command), 0);
	CHECK(command.flags == (fits < wanted ? 0x101 : 0x100), "flags %llx", (unsigned long long)command.flags);
	for (i = 0; i < fits; i++)
		check_entry(0, i);
	for (; i < wanted; i++)
		CHECK(number_of(0, i) == -EMFILE, "entry %u is %d", i, number_of(0, i));
	setrlimit(RLIMIT_NOFILE, &old);
	CHECK(count_open() == before + fits, "%u open, %u before, %u fit", count_open(), before, fits);
	for (i = 0; i < fits; i++)
		close(number_of(0, i));
}

static void rlimits(void)
{
	limited(0, 1, 0);
	limited(1, 1, 0);
	limited(2, 1, 1);
	limited(3, 5, 2);
	limited(20, 40, 19);
	limited(60, 253, 59);
	limited(80, 20, 20);
}

#if defined(__x86_64__)
/* An ioctl with the stack pointer at `stack`. */
static long ioctl_on_stack(void *stack, struct command *command)
{
	long result;

	__asm__ volatile("mov %%rsp, %%rbx\n\tmov %[stack], %%rsp\n\tsyscall\n\tmov %%rbx, %%rsp"
			 : "=a"(result)
			 : "a"(SYS_ioctl), "D"((long)fd), "S"((long)COMMAND), "d"(command), [stack] "r"(stack)
			 : "rbx", "rcx", "r11", "memory");
	return result;
}

/* With the stack at its very end, above a page that is not mapped, and above another's data. */
static void stack(void)
{
	unsigned char *area = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static const unsigned counts[] = { 1, 5, 40 };

	mprotect(area, 4096, PROT_NONE);
	memset(area + 4096, 0x5a, 12288);
	for (unsigned i = 0; i < 6; i++) {
		struct command command = { .pipes = counts[i % 3], .token = 3, .flags = 0x100 };

		check_answer(&command, 3, (int)ioctl_on_stack(area + (i < 3 ? 4096 : 8192), &command), 0);
		CHECK(command.flags == 0x100, "flags");
		for (unsigned index = 0; index < counts[i % 3]; index++) {
			check_entry(0, index);
			close(number_of(0, index));
		}
	}
	for (int i = 4096; i < 16384; i++)
		CHECK(area[i] == 0x5a, "byte %d of the stack changed", i);
}

/* The i386 gate in a 64-bit program. */
static void gate(void)
{
	struct command *command = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	for (unsigned count = 1; count < 60; count += 12) {
		int result;

		*command = (struct command){ .pipes = count, .token = 3, .result = 7, .flags = 0x100 };
		__asm__ volatile("int $0x80"
				 : "=a"(result)
				 : "a"(54), "b"(fd), "c"((unsigned)COMMAND), "d"(command)
				 : "memory", "r8", "r9", "r10", "r11");
		check_answer(command, 3, result, 7);
		for (unsigned index = 0; index < count; index++) {
			check_entry(0, index);
			close(number_of(0, index));
		}
	}
}
#endif

static char *again[] = { "client", NULL, NULL, "once", NULL };

static void *exec_soon(void *after)
{
	usleep((useconds_t)(uintptr_t)after);
	execv("/proc/self/exe", again);
	return NULL;
}

/* A sibling executes another program, which has to work as well. */
static void exec_during(unsigned times)
{
	int status;

	for (unsigned i = 0; i < times; i++) {
		pid_t child = fork();

		if (child == 0) {
			pthread_t thread;

			srand((unsigned)getpid());
			/* either the leader or another thread is the one that dies */
			if (i % 2) {
				pthread_create(&thread, NULL, exec_soon, (void *)(uintptr_t)(rand() % 3000));
				loop_for_ever((void *)1);
			}
			for (uintptr_t slot = 1; slot < 3; slot++)
				pthread_create(&thread, NULL, loop_for_ever, (void *)slot);
			exec_soon((void *)(uintptr_t)(rand() % 3000));
		}
		CHECK(waitpid(child, &status, 0) == child && status == 0, "status %x in round %u", status, i);
	}
}

static void *take_late(void *unused)
{
	struct command command = { .pipes = 1, .delay = 100 };

	ioctl(fd, COMMAND, &command);
	return unused;
}

/* The sibling's execve waits for a thread whose ioctl has not been answered yet. */
static void exec_before(int leader)
{
	pthread_t thread;

	pthread_create(&thread, NULL, leader ? exec_soon : take_late, (void *)20000);
	if (leader)
		take_late(NULL);
	else
		exec_soon((void *)20000);
	pause();
}

static void swap(void)
{
	for (int cloexec = 0; cloexec < 2; cloexec++)
		for (unsigned pipes = 0; pipes < 13; pipes += 4) {
			struct command command = { .token = 1, .mode = STATS };
			unsigned before;

			close(fd);
			fd = open(device, O_RDWR | (cloexec ? O_CLOEXEC : 0));
			before = count_open();
			check_answer(&command, 1, ioctl(fd, COMMAND, &command), 0);
			CHECK(command.node == 2, "node");
			take(0, pipes, 0, 0, SWAP, 1);
			CHECK(count_open() == before, "%u open, %u before", count_open(), before);
			CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY, "not swapped");
			CHECK(fcntl(fd, F_GETFD) == (cloexec ? FD_CLOEXEC : 0), "close-on-exec");
			command = (struct command){ .token = 1, .mode = STATS };
			check_answer(&command, 1, ioctl(fd, COMMAND, &command), 0);
			CHECK(command.node == 3, "node %llu", (unsigned long long)command.node);
			take(0, 2, 0, 0, 0, 1);
		}
}

static void *displace(void *unused)
{
	(void)unused;
	usleep(50000);
	close(fd);
	CHECK(open("/dev/null", O_RDONLY | O_CLOEXEC) == fd, "the number is not the lowest");
	return NULL;
}

/* A sibling closes the descriptor that is about to be swapped, and opens another file. */
static void displaced(void)
{
	struct command command = { .mode = SWAP, .token = 7, .delay = 150 };
	unsigned before = count_open();
	pthread_t thread;
	struct stat st;

	pthread_create(&thread, NULL, displace, NULL);
	check_answer(&command, 7, ioctl(fd, COMMAND, &command), 0);
	pthread_join(thread, NULL);
	CHECK(fstat(fd, &st) == 0 && S_ISCHR(st.st_mode), "the sibling's file was replaced");
	CHECK(count_open() == before, "%u open, %u before", count_open(), before);
}

static volatile int dropped_early;

static void *drop_page(void *page)
{
	volatile struct command *command = page;

	usleep(50000);
	dropped_early = command->token == 4;
	madvise(page, 4096, MADV_DONTNEED);
	return NULL;
}

static void *drop_answered_page(void *page)
{
	volatile struct command *command = page;

	dropped_early = 0;
	while (command->token != 5)
		;
	madvise(page, 4096, MADV_DONTNEED);
	return NULL;
}

/* Takes the faults of its parent's memory: tells of each, and gives the page back after `ms`.  Several threads, of the
 * daemon too, can wait for the same page: it is back for all of them at the first. */
static void give_pages_back(int uffd, struct uffdio_zeropage *page, unsigned ms, volatile unsigned *faults)
{
	struct uffd_msg message;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		CHECK(read(uffd, &message, sizeof(message)) == sizeof(message), "fault, errno %d", errno);
		++*faults;
		usleep(ms * 1000);
		CHECK(!ioctl(uffd, UFFDIO_ZEROPAGE, page) || errno == EEXIST, "zeropage, errno %d", errno);
	}
}

/* The page of the command vanishes before the answer, or right after it, under the first call that this thread is made
 * to do; and comes back only after `ms`.  On a busy machine it can vanish later than that, when nobody needs it any
 * more or when all is installed: then all that is done again. */
static void fault(unsigned ms, int answered)
{
	enum { SLOT = SLOTS - 1 }; /* of no other client's */
	unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	volatile unsigned *faults = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct command *command = (struct command *)page;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { { (uintptr_t)page, 4096 }, UFFDIO_REGISTER_MODE_MISSING, 0 };
	struct uffdio_zeropage zero = { { (uintptr_t)page, 4096 }, 0, 0 };
	unsigned before, rounds = 0, seen;
	time_t end = time(NULL) + 200;
	pthread_t thread;
	pid_t child;
	int got;

	CHECK(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api), "userfaultfd, errno %d", errno);
	before = count_open();
	*page = 0;
	CHECK(!ioctl(uffd, UFFDIO_REGISTER, &range), "register");
	child = fork();
	if (child == 0)
		give_pages_back(uffd, &zero, ms, faults);
	for (;;) {
		seen = *faults;
		*command = (struct command){ .slot = SLOT, .pipes = 2, .token = 4, .delay = 150, .flags = 0x100 };
		pthread_create(&thread, NULL, answered ? drop_answered_page : drop_page, page);
		got = ioctl(fd, COMMAND, command);
		pthread_join(thread, NULL);
		if (*faults != seen && (answered ? command->flags == 0x101 : dropped_early))
			break;
		CHECK(++rounds && time(NULL) < end, "the page vanished too late in %u rounds", rounds);
		CHECK(!ioctl(uffd, UFFDIO_ZEROPAGE, &zero) || errno == EEXIST, "zeropage, errno %d", errno);
		for (unsigned i = 0; i < 2; i++)
			close(number_of(SLOT, i));
	}
	check_answer(command, 4, got, 0);
	kill(child, SIGKILL);
	CHECK(waitpid(child, NULL, 0) == child, "waitpid, errno %d", errno);
	if (ms < 2000) {
		CHECK(command->flags == 0x100, "flags");
		for (unsigned i = 0; i < 2; i++) {
			check_entry(SLOT, i);
			close(number_of(SLOT, i));
		}
	} else {
		CHECK(command->flags == 0x101, "flags %llx", (unsigned long long)command->flags);
		for (unsigned i = 0; i < 2; i++)
			CHECK(number_of(SLOT, i) == -ETIMEDOUT, "entry %u is %d", i, number_of(SLOT, i));
	}
	CHECK(count_open() == before, "%u open, %u before", count_open(), before);
}

/* A root of its own, with its own process ids. */
static void namespaces(void)
{
	pid_t child;
	int status;

	CHECK(!unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC), "unshare, errno %d", errno);
	child = fork();
	if (child == 0) {
		for (int i = 0; i < 100; i++)
			take(0, 1 + i % 12, 0, rotation[i % 4], 0, 1);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0, "status %x", status);
}

/* Waits until no job is left, and prints how many descriptors the daemon has. */
static void stats(void)
{
	struct command command;

	for (int i = 0; i < 12000; i++) {
		command = (struct command){ .mode = STATS };
		CHECK(!ioctl(fd, COMMAND, &command), "ioctl");
		if (command.outstanding == 0) {
			printf("%llu\n", (unsigned long long)command.descriptors);
			return;
		}
		usleep(10000);
	}
	CHECK(0, "%llu jobs are left", (unsigned long long)command.outstanding);
}

static int compare_times(const void *a, const void *b)
{
	double difference = *(const double *)a - *(const double *)b;

	return (difference > 0) - (difference < 0);
}

/* Prints median and 99th percentile of an ioctl with `count` descriptors, in us. */
static void measure(unsigned count, unsigned times)
{
	double *taken = calloc(times, sizeof(*taken));

	for (unsigned i = 0; i < times; i++) {
		struct command command = { .pipes = count, .mode = KEPT };
		struct timespec from, to;

		clock_gettime(CLOCK_MONOTONIC, &from);
		ioctl(fd, COMMAND, &command);
		clock_gettime(CLOCK_MONOTONIC, &to);
		taken[i] = (double)(to.tv_sec - from.tv_sec) * 1e6 + (double)(to.tv_nsec - from.tv_nsec) / 1e3;
		for (unsigned index = 0; index < count; index++)
			close(number_of(0, index));
	}
	qsort(taken, times, sizeof(*taken), compare_times);
	printf("%.1f %.1f\n", taken[times / 2], taken[times * 99 / 100]);
}

int main(int argc, char **argv)
{
	const char *mode = argv[3];
	unsigned first = argc > 4 ? (unsigned)atoi(argv[4]) : 0, second = argc > 5 ? (unsigned)atoi(argv[5]) : 0;
	int file;

	close_range(3, ~0u, 0);
	device = again[1] = argv[1];
	results_path = again[2] = argv[2];
	fd = open(device, O_RDWR | O_CLOEXEC);
	file = open(results_path, O_RDWR);
	results = mmap(NULL, SLOTS * SLOT_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(fd >= 0 && file >= 0 && results != MAP_FAILED, "cannot open %s, errno %d", device, errno);
	close(file);
	if (!strcmp(mode, "basic"))
		basic();
	else if (!strcmp(mode, "threads"))
		threads(first, second);
	else if (!strcmp(mode, "signals"))
		signals(first, second);
	else if (!strcmp(mode, "loop"))
		loop_for_ever((void *)(uintptr_t)first);
	else if (!strcmp(mode, "stops"))
		stops(first, second);
	else if (!strcmp(mode, "seccomp"))
		seccomp();
	else if (!strcmp(mode, "traced"))
		traced();
	else if (!strcmp(mode, "rlimits"))
		rlimits();
#if defined(__x86_64__)
	else if (!strcmp(mode, "stack"))
		stack();
	else if (!strcmp(mode, "gate"))
		gate();
#endif
	else if (!strcmp(mode, "exec-during"))
		exec_during(first);
	else if (!strcmp(mode, "exec-before"))
		exec_before((int)first);
	else if (!strcmp(mode, "once"))
		take(0, 1, 0, 0, 0, 1);
	else if (!strcmp(mode, "swap"))
		swap();
	else if (!strcmp(mode, "displaced"))
		displaced();
	else if (!strcmp(mode, "fault"))
		fault(first, second);
	else if (!strcmp(mode, "namespaces"))
		namespaces();
	else if (!strcmp(mode, "stats"))
		stats();
	else if (!strcmp(mode, "measure"))
		measure(first, second);
	else
		CHECK(0, "no such mode: %s", mode);
	return 0;
}
