// Package eviction decides what a node does when it runs short of memory, disk or
// process numbers: which conditions it says, what it reclaims and which pod has to
// go, in the order and in the words that users of Kubernetes know.
//
// The deciding functions (Config.Decide, Rank, Message) are pure; Sources measures,
// and package node acts. Thresholds, grace periods, minimum reclaim and the
// transition period are those of kubelet's flags of the same names.
//
// Limits: Linux only; containers' writable layers are on the file system of the
// images, so there is no containerfs of its own.
package eviction
