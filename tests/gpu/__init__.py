"""What a real card says of libvgpu: memory (`make gpu-test`) and compute (`make gpu-bench`).

The programs run on any machine. Without a driver, a card or PyTorch they say what is missing, write
rows of "not measured" and end well; with `--simulated` they run on the simulated driver, which
shows that they work and nothing else.
"""
