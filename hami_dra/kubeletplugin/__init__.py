"""What every DRA driver's kubelet plugin needs, whatever its devices are.

Sockets and registration, the Prepare and Unprepare service, several instances on one node, and
the ResourceSlices of a pool. docs/reference/kubelet-plugin.md shows a whole driver made of it.
"""
