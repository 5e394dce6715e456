"""The C kernels: all compiled code of the package, in one library."""
