// Package dev runs a whole skiff cluster on one Linux machine, to try skiff and
// to test it under faults.
//
// Each node has its own network, mount, host name and cgroup namespace, its own
// cgroups, and its data directory on an ext4 image of its own (a loop device),
// so that a node can lose its power, its network or its disk without the
// others noticing. The nodes' links end in a bridge in a network namespace of
// its own: rules of the machine's firewall do not apply among nodes, and
// partitions are rules of that bridge, which cut whatever passes between two
// nodes, pods' packets included.
//
// Nothing lives on between commands but kernel objects and the nodes'
// processes. Their names follow from the cluster's folder, so that Down finds
// all of them whatever was killed when.
//
// Limits: Linux, root, IPv4. Nodes share the machine's processes (no PID
// namespace), clock and kernel. A node that loses its power loses what it had
// in memory, but the machine's page cache keeps what it had written. Without
// loop devices or mkfs.ext4 see Config.PlainDisks.
package dev
