/* The alarm ends the reader's sleep for events other than requests; not for Python. */
#pragma once
#include <stdint.h>

struct kfs_alarm;

struct kfs_alarm *kfs_alarm_new(int fuse_fd, int tree_fd, int event_fd);
void kfs_alarm_free(struct kfs_alarm *a);

void kfs_alarm_opened(struct kfs_alarm *a, uint64_t nodeid);
void kfs_alarm_released(struct kfs_alarm *a, uint64_t nodeid);

int kfs_alarm_watches(struct kfs_alarm *a);
int kfs_alarm_has_news(struct kfs_alarm *a);
void kfs_alarm_seen(struct kfs_alarm *a);
void kfs_alarm_more(struct kfs_alarm *a);
int kfs_alarm_sleep(struct kfs_alarm *a, uint64_t deadline_ns);
void kfs_alarm_awake(struct kfs_alarm *a);
