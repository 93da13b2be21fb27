/* order.c: one order for all receivers. */
#include "peer.h"

#define NODE 0x100

int main(int argc, char **argv)
{
	struct peer senders[2], receivers[2];
	uint64_t to[2][3], own = 0x200;
	struct bus1_cmd_recv cmd;

	if (argc != 2)
		return 2;
	for (int i = 0; i < 2; i++) {
		senders[i] = peer_open(argv[1]);
		receivers[i] = peer_open(argv[1]);
	}
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 2; j++)
			to[i][j] = give(&receivers[j], NODE, &senders[i]);
	/* The first sender sends to the second one, too, and both receivers have a handle of it. */
	to[0][2] = give(&senders[1], NODE, &senders[0]);

	/* The handle in the message is a new node of the first sender's. */
	if (send_text(&senders[0], to[0], 3, "cause", &own) != 0)
		die("SEND");
	cmd = receive(&senders[1]);
	done(&senders[1], &cmd);
	if (send_text(&senders[1], to[1], 2, "effect", NULL) != 0)
		die("SEND");
	destroy(&senders[0], own);

	for (int i = 0; i < 2; i++) {
		printf("receiver %d: ", i + 1);
		for (int j = 0; j < 3; j++) {
			cmd = receive(&receivers[i]);
			printf("%s%s", cmd.msg.type == BUS1_MSG_DATA ? text_of(&receivers[i], &cmd) : "destruction",
			       j < 2 ? ", " : "\n");
			done(&receivers[i], &cmd);
		}
	}
	return 0;
}
