/* The bounds of one user: how many readers the memory of its processes holds up, and how often; who exceeds them is
 * blocked (ownership.h). */
#include "internal_ownership.h"

static struct uid_account *find_account(struct kfs_ownership *o, uint32_t uid)
{
	for (int i = 0; i < ACCOUNTS; i++)
		if (o->accounts[i].last && o->accounts[i].uid == uid)
			return &o->accounts[i];
	return NULL;
}

/* The account of `uid`, or a new one in place of the least recently used one without stuck readers. */
static struct uid_account *make_account(struct kfs_ownership *o, uint32_t uid)
{
	struct uid_account *account = find_account(o, uid);

	if (account)
		return account;
	for (int i = 0; i < ACCOUNTS; i++) {
		struct uid_account *other = &o->accounts[i];

		if (!other->stuck && (!account || other->last < account->last))
			account = other;
	}
	if (account)
		*account = (struct uid_account){ .uid = uid };
	return account;
}

/* With the lock held: a reader is stuck in memory of `uid`, and was preempted. */
void kfs_charge_preemption(struct kfs_ownership *o, uint32_t uid)
{
	struct uid_account *account = make_account(o, uid);
	uint64_t now = kfs_now_ns(), *oldest;

	o->count.stuck++;
	o->count.preempted++;
	if (o->count.stuck >= (uint32_t)KFS_STUCK_MAX)
		o->any_blocked = 1;
	if (!account)
		return;
	oldest = &account->times[account->oldest];
	account->stuck++;
	if (account->stuck >= (uint32_t)KFS_STUCK_PER_UID ||
	    (*oldest && now - *oldest < KFS_PREEMPTIONS_MS * NS_PER_MS)) {
		account->blocked_until = now + KFS_BLOCKED_MS * NS_PER_MS;
		o->any_blocked = 1;
	}
	account->last = *oldest = now;
	account->oldest = (account->oldest + 1) % KFS_PREEMPTIONS_MAX;
}

/* With the lock held: a reader that was stuck in memory of `uid` is back. */
void kfs_discharge_stuck(struct kfs_ownership *o, uint32_t uid)
{
	struct uid_account *account = find_account(o, uid);

	o->count.stuck--;
	if (account && account->stuck)
		account->stuck--;
}

/* Whether memory of `uid` must not be accessed now; counted.  Called when `any_blocked`. */
int kfs_is_blocked(struct kfs_ownership *o, uint32_t uid)
{
	uint64_t now = kfs_now_ns();
	int blocked, any;

	pthread_mutex_lock(&o->lock);
	blocked = any = o->count.stuck >= (uint32_t)KFS_STUCK_MAX;
	for (int i = 0; i < ACCOUNTS; i++) {
		struct uid_account *account = &o->accounts[i];

		if (account->stuck < (uint32_t)KFS_STUCK_PER_UID && now >= account->blocked_until)
			continue;
		any = 1;
		if (account->uid == uid)
			blocked = 1;
	}
	if (!any)
		o->any_blocked = 0;
	o->count.blocked += blocked;
	pthread_mutex_unlock(&o->lock);
	return blocked;
}
