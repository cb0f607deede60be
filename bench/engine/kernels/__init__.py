"""The C++ kernels of narrow passes, built at first use."""
