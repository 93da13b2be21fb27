#pragma once

/* 1, 0 or -errno. */
int kfs_thread_capability(int tid, int capability);
