// Package pod runs the pods that are bound to this node. Each pod has one
// worker: a goroutine that compares what the API object asks for with what
// the runtime says is there, takes the next steps, computes the pod's status
// and sleeps until something changes. Nothing is polled; a missed event is
// healed by the next pass.
//
// A pod moves through explicit states (State); a move that is not in the
// table fails where it is made. Containers live in a sandbox that outlives
// the agent: a new agent adopts it and goes on.
//
// Limits: Linux; no user namespaces, no device plugins, no CSI. Fields that are not supported make the pod fail with an event and a
// status that name the field (see Refused).
package pod
