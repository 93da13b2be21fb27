"""The mount: the split of /dev/fuse, the tree that pyfuse3 presents, and the commands that go beside it."""
