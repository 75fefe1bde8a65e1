// Package scheduler assigns pods to nodes.
//
// One goroutine takes pods from a queue, and decides for each on a picture of the
// cluster (state) that informer events keep up to date, change by change. A
// decision filters nodes (filter_*.go: each filter says why it refuses a node,
// and the user reads it in the pod's events) and scores those that are left
// (score_*.go). The chosen node is assumed at once, so the next decision counts
// the pod in; writing the binding is left to a few workers.
//
// A pod that fits nowhere waits until something changes that the filters which
// refused it care about. Nothing polls, and an idle cluster costs nothing.
//
// Claims whose class waits for the pod's node get their volumes there before the
// pod is bound (bind_volumes.go): the decision is written to volume or claim,
// and the binding waits until whoever binds and makes volumes has done so.
//
// Limits: no preemption, no limits of CSI drivers, no dynamic resource
// allocation and no pod groups. A pod that asks for what is not supported stays
// Pending with an event that names the field.
package scheduler
