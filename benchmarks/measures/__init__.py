"""Tools of `gpu.py`: timing by the device's own clock, and NVIDIA's sanitizers."""
