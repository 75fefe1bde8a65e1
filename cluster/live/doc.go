// Package live prepares a snapshot for a restore into the running cluster that it
// is of, and says what that will do.
//
// What the cluster is made of stays as it is: its members, keys, settings, the
// upgrade under way (all that is skiff's own), and its nodes. What runs stays as
// it is as well, so the snapshot is brought up to date in what the state says of
// running things and did not decide:
//
//   - A pod that is in both (by its UID) has the status and the node of now. If
//     nothing else differs, it is the object of now, and no agent notices anything.
//   - A pod that comes back is not ready: it does not run yet.
//   - Endpoints that a controller keeps are those of now, without the pods that
//     go. No traffic is sent where nobody is.
//   - Secrets are sealed with the data keys of now.
//
// The controllers do the rest, from the restored state on.
package live

const (
	ownPrefix      = "/skiff/"
	reservedPrefix = "/skiff/reserved/" // addresses and ports of Services: they go with the Services
	nodePrefix     = "/registry/nodes/"
	podPrefix      = "/registry/pods/"
	servicePrefix  = "/registry/services/"
	slicePrefix    = "/registry/endpointslices/"
	endpointPrefix = "/registry/endpoints/"
)

// Keep are prefixes of keys that a restore leaves as they are, but for those with
// a prefix of Except.
var (
	Keep   = []string{ownPrefix, nodePrefix}
	Except = []string{reservedPrefix}
)
