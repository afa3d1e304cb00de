"""Doubles of the world outside, shipped and tested: a kubelet, an API server, GPUs.

They speak the real protocols, so what runs against them is the real code. Nothing that the
product runs imports this package.
"""
