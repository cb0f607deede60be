"""The C++ kernels of forward passes on a CPU, built at first use."""
