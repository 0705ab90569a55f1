"""What `gpu.py` measures with: a device's own clock, and NVIDIA's sanitizers."""
