// Package podnet connects pods to the node and nodes to each other.
//
// A pod has one veth: eth0 inside with a /32 address, a host end named after
// the pod's UID, and a route to the address on the host. There is no bridge and
// no ARP: both ends know the other's MAC, and the gateway 169.254.1.1 exists
// only as a static neighbour. Between nodes there are plain routes where they
// share a link, and VXLAN where not.
package podnet
