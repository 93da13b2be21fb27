/* notices.c: what owners and holders are told. */
#include "peer.h"

#define NODE 0x100

static void show(const char *who, const struct peer *peer)
{
	struct bus1_cmd_recv cmd = receive(peer);

	printf("%s: %s of %#llx\n", who, cmd.msg.type == BUS1_MSG_NODE_RELEASE ? "release" : "destruction",
	       (unsigned long long)cmd.msg.destination);
}

int main(int argc, char **argv)
{
	struct peer owner, holder;
	uint64_t first, second;

	if (argc != 2)
		return 2;
	owner = peer_open(argv[1]);
	holder = peer_open(argv[1]);

	/* The last reference of others is gone. */
	release(&holder, give(&owner, NODE, &holder));
	show("owner", &owner);

	/* The node lives on, and its end is told to all. An id that was given by the bus is not given again. */
	first = give(&owner, NODE, &holder);
	destroy(&owner, NODE);
	show("holder", &holder);
	show("owner", &owner);
	release(&holder, first);

	/* So is that of all nodes of a peer that goes. */
	second = give(&owner, NODE + 4, &holder);
	munmap((void *)owner.pool, MAP_SIZE);
	close(owner.fd);
	show("holder", &holder);
	printf("sending to it: %s\n", strerror(send_text(&holder, &second, 1, "hello", NULL)));
	return 0;
}
