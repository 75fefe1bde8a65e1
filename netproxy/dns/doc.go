// Package dns answers the cluster's DNS on each node, at the cluster DNS
// address, from informer caches: names of the cluster need no further hop and
// no API server. Other names are forwarded to the host's resolvers.
//
// It follows the Kubernetes DNS specification 1.1.0. Limits: IPv4 only (AAAA of
// names that exist has no data); pod records are answered for any address,
// since the node does not know every pod.
package dns
