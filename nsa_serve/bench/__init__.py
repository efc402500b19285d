"""What `nsa-serve bench` measures: attention kernels beside dense attention, and whole engines."""
