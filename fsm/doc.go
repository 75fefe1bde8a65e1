// Package fsm is the replicated state machine: the commands that go into the
// Raft log, what they do to the store, and the snapshots of the result.
//
// Invariants:
//
//   - Apply is deterministic. It has no clock, no randomness, no network and no
//     context; whoever proposes stamps times, UIDs and names before. The same
//     log gives byte-equal snapshots on every member.
//   - Conflicts are results ([Result.Err]), not failures. Apply panics only when
//     going on would let members diverge: a damaged entry, or a command type
//     that this version does not know.
//   - Command type numbers and snapshot block kinds are only ever appended.
//
// Keys that begin with /registry/ are API objects. Keys that begin with /skiff/
// are skiff's own (certificates, configuration) and are never served as
// objects; a snapshot carries both.
//
// The FSM publishes changes through the store and starts nothing.
package fsm
