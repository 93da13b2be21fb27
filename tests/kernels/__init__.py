"""`make test-kernels`: the project on packaged kernels, in virtual machines (docs/kernels.md)."""
