/*
 * pool_maps ENDPOINT: says HELLO and then tries every way to write to the pool that is known, through what a client has
 * for reading and through what it had open and mapped before.  A line for each; exit status 1 if any of them wrote.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kdbus.h"

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#endif

#define PAGE 4096
#define POOL (64 * PAGE)
#define AT (2 * PAGE) /* where it writes; nothing of the daemon's is there */

static const char *pool;
static char ink[PAGE] __attribute__((aligned(PAGE)));
static int own, spare, source;
static bool failed;

static void tell(const char *way, long result)
{
	const char *error = result < 0 ? strerror(errno) : "went through";
	bool written = pool[AT] != 0;

	failed |= written;
	printf("%-44s %s%s\n", way, error, written ? "  WRITTEN" : "");
	fflush(stdout);
}

static char *map(int fd, int protection, int flags)
{
	char *at = mmap(NULL, POOL, protection, flags, fd, 0);

	return at == MAP_FAILED ? NULL : at;
}

/* In a child, because touching a page that is not there is fatal. */
static void touch(const char *way, char *at)
{
	int status = 0;
	pid_t child;

	if (!at) {
		tell(way, -1);
		return;
	}
	child = fork();
	if (child == 0) {
		memcpy(at + AT, ink, PAGE);
		_exit(0);
	}
	waitpid(child, &status, 0);
	errno = EFAULT;
	tell(way, status ? -1 : 0);
}

static void fill_missing(const char *way, char *at)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register area = { .range = { (uintptr_t)at, POOL }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { .dst = (uintptr_t)at + AT, .src = (uintptr_t)ink, .len = PAGE };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	if (fd < 0 || !at || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &area))
		tell(way, -1);
	else
		tell(way, ioctl(fd, UFFDIO_COPY, &copy));
	close(fd);
}

static void change_the_map(char *view)
{
	const int both = PROT_READ | PROT_WRITE;
	char *again;

	tell("mmap, shared and writable", map(own, both, MAP_SHARED) ? 0 : -1);
	tell("mprotect", mprotect(view, POOL, both));
	tell("pkey_mprotect", syscall(SYS_pkey_mprotect, view, POOL, both, -1));
	tell("remap_file_pages", syscall(SYS_remap_file_pages, view, POOL, 0, 0, 0));
	again = mremap(view, 0, POOL, MREMAP_MAYMOVE);
	if (again != MAP_FAILED)
		tell("mprotect of a second view by mremap", mprotect(again, POOL, both));
	/* From 100 on there are poison and guards, which would end this program. */
	for (int advice = 0; advice < 100; advice++)
		if (advice != MADV_DONTFORK)
			madvise(view + AT, PAGE, advice);
	tell("madvise, all kinds", madvise(view + AT, PAGE, MADV_REMOVE));
	touch("a child's mprotect", mprotect(view, POOL, both) == 0 ? view : NULL);
}

static void have_the_kernel_write(char *view)
{
	struct iovec from = { ink, PAGE }, to = { view + AT, PAGE }, all = { view, POOL };
	struct io_uring_params parameters = { 0 };
	int memory = open("/proc/self/mem", O_RDWR), zeros = open("/dev/zero", O_RDONLY), pair[2], ring;

	tell("process_vm_writev", process_vm_writev(getpid(), &from, 1, &to, 1, 0));
	tell("/proc/self/mem", pwrite(memory, ink, PAGE, (off_t)(uintptr_t)(view + AT)));
	tell("read into it", read(zeros, view + AT, PAGE));
	tell("getrandom into it", getrandom(view + AT, 64, 0));
	if (pipe(pair) == 0)
		tell("vmsplice as a gift", vmsplice(pair[1], &to, 1, SPLICE_F_GIFT));
	ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
	tell("a buffer of an io_uring",
	     ring < 0 ? -1 : syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &all, 1));
	fill_missing("userfaultfd, the map", view);
	fill_missing("userfaultfd, a private map", map(own, PROT_READ | PROT_WRITE, MAP_PRIVATE));
	fill_missing("userfaultfd, a map of the duplicate", map(spare, PROT_READ | PROT_WRITE, MAP_SHARED));
}

static void open_again(char *view)
{
	union {
		struct file_handle head;
		char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} handle = { .head = { .handle_bytes = MAX_HANDLE_SZ } };
	char path[80];
	int unused;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", own);
	tell("/proc/self/fd, for writing", open(path, O_RDWR));
	tell("/proc/self/fd, for reading", open(path, O_RDONLY));
	snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", (long)view, (long)view + POOL);
	tell("/proc/self/map_files", open(path, O_RDWR));
	if (name_to_handle_at(own, "", &handle.head, &unused, AT_EMPTY_PATH) == 0)
		tell("open_by_handle_at", open_by_handle_at(own, &handle.head, O_RDWR));
	fcntl(own, F_SETFL, O_RDWR);
	tell("pwrite after F_SETFL", pwrite(own, ink, PAGE, AT));
}

static void change_the_file(const char *name, int fd)
{
	char way[80];
	off_t from = 0, to = AT;
	int pair[2];
	long spliced = -1;

#define TELL(what, result) (snprintf(way, sizeof(way), "%s: %s", name, what), tell(way, result))
	TELL("pwrite", pwrite(fd, ink, PAGE, AT));
	TELL("fallocate", fallocate(fd, 0, 0, POOL));
	TELL("a hole", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, POOL));
	TELL("ftruncate to nothing", ftruncate(fd, 0));
	TELL("ftruncate", ftruncate(fd, POOL));
	TELL("seals", fcntl(fd, F_ADD_SEALS, 0xf));
	TELL("copy_file_range", copy_file_range(source, &from, fd, &to, PAGE, 0));
	if (pipe(pair) == 0 && write(pair[1], ink, PAGE) == PAGE) {
		to = AT;
		spliced = splice(pair[0], NULL, fd, &to, PAGE, SPLICE_F_NONBLOCK);
	}
	TELL("splice", spliced);
#undef TELL
}

int main(int argc, char **argv)
{
	struct kdbus_cmd_hello hello = { .size = sizeof(hello), .attach_flags_send = UINT64_MAX, .pool_size = POOL };
	const int both = PROT_READ | PROT_WRITE;
	char *early, *view, *private;

	memset(ink, 'A', sizeof(ink));
	own = argc == 2 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
	source = open("/proc/self/exe", O_RDONLY);
	spare = dup(own);
	early = map(own, both, MAP_SHARED);
	if (own < 0 || ioctl(own, KDBUS_CMD_HELLO, &hello) < 0 || !(view = map(own, PROT_READ, MAP_SHARED))) {
		perror("pool_maps");
		return 2;
	}
	pool = view;
	touch("a map from before HELLO", early);
	touch("a map of the duplicate", map(spare, both, MAP_SHARED));
	change_the_map(view);
	have_the_kernel_write(view);
	open_again(view);
	change_the_file("the descriptor", own);
	change_the_file("the duplicate", spare);
	private = map(own, both, MAP_PRIVATE);
	touch("a private map", private);
	touch("a private map of the duplicate", map(spare, both, MAP_PRIVATE));
	puts(failed ? "the pool was WRITTEN to" : "nothing wrote to the pool");
	return failed;
}
