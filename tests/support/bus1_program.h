/* What the programs of bus1 have in common: they end with 0, or say which line was not true. */
#ifndef BUS1_PROGRAM_H
#define BUS1_PROGRAM_H

#include "bus1.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAP_SIZE (16UL << 20)

#define check(expression)                                                                        \
	do {                                                                                     \
		if (!(expression)) {                                                             \
			fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__, #expression, errno); \
			exit(1);                                                                 \
		}                                                                                \
	} while (0)

/* A descriptor, and the first MAP_SIZE of the pool. */
struct peer {
	int fd;
	const uint8_t *map;
};

static inline struct peer peer_open(const char *path)
{
	struct peer peer = { .fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) };

	check(peer.fd >= 0);
	peer.map = mmap(NULL, MAP_SIZE, PROT_READ, MAP_SHARED, peer.fd, 0);
	check(peer.map != MAP_FAILED);
	return peer;
}

static inline void peer_free(struct peer *peer)
{
	check(munmap((void *)peer->map, MAP_SIZE) == 0);
	check(close(peer->fd) == 0);
}

#endif
