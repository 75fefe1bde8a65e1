// Package netproxy is the network of one node: the pod network, the service
// proxy and cluster DNS.
//
// Everything it does to the host lies in one nftables table, links named
// skiff*, routes with skiff's own protocol number and addresses on lo with a
// label; Reset removes exactly these. Rules, links and routes outlive the
// process: a restart reconciles them, and no connection breaks.
//
// Limits: IPv4 only.
package netproxy
