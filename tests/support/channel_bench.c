/* Times round trips to a mount: channel_bench FILE poll|unknown|free|send COUNT */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	uint64_t command[16] = { 40 }, message[32] = { 200 };
	int fd, count;
	double *times;

	if (argc != 4 || (fd = open(argv[1], O_RDWR)) < 0)
		return 1;
	count = atoi(argv[3]);
	times = calloc(count, sizeof(*times));
	if (!strcmp(argv[2], "send")) {
		command[0] = 72;
		command[5] = (uintptr_t)message;
	}
	for (int i = 0; i < count; i++) {
		double start = now_us();
		struct pollfd pfd = { fd, POLLIN, 0 };

		if (!strcmp(argv[2], "poll"))
			poll(&pfd, 1, 0);
		else if (!strcmp(argv[2], "unknown"))
			ioctl(fd, 0x9577, 0);
		else if (!strcmp(argv[2], "free"))
			ioctl(fd, 0x40289532, command);
		else if (ioctl(fd, 0xC0489530, command) < 0)
			return 2;
		times[i] = now_us() - start;
	}
	qsort(times, count, sizeof(*times), compare);
	double sum = 0;
	for (int i = 0; i < count; i++)
		sum += times[i];
	printf("%s median %.2f mean %.2f p99 %.2f us\n", argv[2], times[count / 2], sum / count, times[count * 99 / 100]);
	return 0;
}
