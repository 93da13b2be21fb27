/* nodes.c: a request and its answer. */
#include "peer.h"

#define SERVICE 0x100 /* an id of the service's own choice */
#define ANSWERS 0x200 /* and of the client's */

int main(int argc, char **argv)
{
	struct peer service, client;
	struct bus1_cmd_recv cmd;
	uint64_t handle, answers = ANSWERS, back;

	if (argc != 2)
		return 2;
	service = peer_open(argv[1]);
	client = peer_open(argv[1]);
	/* The node is made by being named. */
	handle = give(&service, SERVICE, &client);
	printf("the client has handle %#llx\n", (unsigned long long)handle);

	/* So is that of the client. */
	if (send_text(&client, &handle, 1, "what time is it", &answers) != 0)
		die("SEND");
	cmd = receive(&service);
	printf("node %#llx is asked: %s\n", (unsigned long long)cmd.msg.destination, text_of(&service, &cmd));
	back = handle_in(&service, &cmd, 0);
	done(&service, &cmd);

	/* The service may answer as long as it has the handle. It answers with one to itself. */
	handle = SERVICE;
	if (send_text(&service, &back, 1, "late", &handle) != 0)
		die("SEND");
	release(&service, back);
	cmd = receive(&client);
	printf("node %#llx is answered: %s\n", (unsigned long long)cmd.msg.destination, text_of(&client, &cmd));
	/* A peer has one id for a node; now it has two references. */
	printf("the client has the handle %#llx of the same node again\n",
	       (unsigned long long)handle_in(&client, &cmd, 0));
	release(&client, handle_in(&client, &cmd, 0));
	release(&client, handle_in(&client, &cmd, 0));
	done(&client, &cmd);
	return 0;
}
