/* What all programs of the benchmark share: durations, helper processes, buffers. */
#ifndef BENCH_H
#define BENCH_H

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REPLY "reply\0\0"
#define REPLY_SIZE sizeof(REPLY)
#define WINDOW 16 /* what one user may have in a queue of kdbus before it is accounted */
#define MIB (1UL << 20)
#define START_PATIENCE_US 20e6 /* until a server must answer */

_Static_assert(REPLY_SIZE == 8, "the reply has 8 bytes");

static inline void must(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(1);
}

static inline double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* --- durations -------------------------------------------------------------------------------------- */

/* Durations in us. */
struct samples {
	double *us;
	int count, room;
	double until;
};

static inline struct samples samples_new(int room, double seconds)
{
	struct samples s = { .us = calloc((size_t)room, sizeof(double)), .room = room };

	must(s.us != NULL, "memory");
	s.until = now_us() + seconds * 1e6;
	return s;
}

/* Whether another one is wanted: until there is no room or the time is over, but never fewer than ten. */
static inline int samples_more(const struct samples *s)
{
	return s->count < s->room && (s->count < 10 || now_us() < s->until);
}

static inline void samples_add(struct samples *s, double start)
{
	if (s->count < s->room)
		s->us[s->count++] = now_us() - start;
}

static inline int compare_us(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* What a program prints is one JSON object, and this a member of it. */
static inline void print_value(const char *part, const char *kind, double value)
{
	static int members;

	printf("%s\"%s\": {\"%s\": %.6f}", members++ ? ", " : "{", part, kind, value);
}

/* --- cpu time of the server ------------------------------------------------------------------------- */

static double operations, server_us;

/* us that all threads of the server have run, whose pid is in the environment. */
static inline double server_cpu_time(void)
{
	const char *pid = getenv("BENCH_SERVER");
	unsigned long long ns, sum = 0;
	struct dirent *entry;
	char path[300];
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%s/task", pid ? pid : "-");
	tasks = opendir(path);
	while (tasks && (entry = readdir(tasks))) {
		FILE *file;

		if (*entry->d_name == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/task/%s/schedstat", pid, entry->d_name);
		file = fopen(path, "r");
		if (file && fscanf(file, "%llu", &ns) == 1)
			sum += ns;
		if (file)
			fclose(file);
	}
	if (tasks)
		closedir(tasks);
	return (double)sum / 1e3;
}

/* Between these two the server works for what is measured, and for nothing else. */
static inline void loop_begins(void)
{
	server_us -= server_cpu_time();
}

static inline void loop_ended(double count)
{
	server_us += server_cpu_time();
	operations += count;
}

static inline void print_operations(void)
{
	print_value("operations", "count", operations);
	if (operations > 0 && server_us > 0)
		print_value("server", "cpu", server_us / operations);
	printf("}\n");
}

/* The first tenth is warming up and not counted.  `per`: by how much a duration is divided. */
static inline void samples_print(const char *part, struct samples *s, double per)
{
	int skip = s->count / 10, count = s->count - skip;
	double *us = s->us + skip, sum = 0;
	char figures[256];

	for (int i = 0; i < count; i++)
		sum += us[i];
	qsort(us, (size_t)count, sizeof(*us), compare_us);
	snprintf(figures, sizeof(figures), "median\": %.4f, \"p90\": %.4f, \"mean\": %.4f, \"count", us[count / 2] / per,
		 us[count * 9 / 10] / per, sum / count / per);
	print_value(part, figures, count);
	free(s->us);
}

/* --- helpers ---------------------------------------------------------------------------------------- */

#define MAX_HELPERS 64

static pid_t helpers[MAX_HELPERS];
static int n_helpers;

/* A helper ends by end_helpers only.  One that fails takes the measurement with it, which would wait for it in vain. */
static inline void helper_failed(int number)
{
	(void)number;
	_exit(1);
}

/* Gives true in a process beside this one, which never outlives it. */
static inline int fork_helper(void)
{
	pid_t parent = getpid(), pid;

	signal(SIGCHLD, helper_failed);
	pid = fork();
	must(pid >= 0 && n_helpers < MAX_HELPERS, "fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		return 1;
	}
	helpers[n_helpers++] = pid;
	return 0;
}

static inline void end_helpers(void)
{
	signal(SIGCHLD, SIG_DFL);
	while (n_helpers) {
		kill(helpers[--n_helpers], SIGKILL);
		waitpid(helpers[n_helpers], NULL, 0);
	}
}

/* A partner that ended is an error as well. */
static inline void pipe_read(int fd, void *data, size_t size)
{
	must(read(fd, data, size) == (ssize_t)size, "helper");
}

static inline void pipe_write(int fd, const void *data, size_t size)
{
	must(write(fd, data, size) == (ssize_t)size, "helper");
}

/* Bytes that can be told from others. */
static inline uint8_t *buffer_of(size_t size)
{
	uint8_t *data = aligned_alloc(4096, (size + 4095) & ~4095UL);

	must(data != NULL, "memory");
	for (size_t i = 0; i < size; i++)
		data[i] = (uint8_t)(i * 31 + i / 251);
	return data;
}

static inline void check_bytes(const uint8_t *data, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (data[i] != (uint8_t)(i * 31 + i / 251)) {
			fprintf(stderr, "byte %zu of %zu is not what was sent\n", i, size);
			_exit(1);
		}
}

#endif
