// Package node is the agent of one machine: it registers the Node object,
// runs the pods that are bound to it (package pod), and serves the kubelet's
// HTTPS API to the API server (package stream).
//
// It talks to the cluster by client-go only, and keeps working on what it
// knows while no server answers. Writes to the API happen on change only.
package node
