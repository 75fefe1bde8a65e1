// Package store is an in-memory, multi-version, ordered key/value store with
// watch. It knows nothing of Raft, disks or Kubernetes objects: fsm writes it,
// cluster/storage reads it.
//
// Invariants:
//
//   - Every change gets its own revision, one higher than the change before.
//     The revision never goes back; [Store.Reset] may only move it forward.
//   - A [View] is immutable and O(1) to take. Readers never block the writer.
//   - Whatever the store hands out (KeyValue, Event, Value bytes) is shared and
//     must not be changed.
//   - There is one writer at a time ([Store.Update]); changes of one Update
//     become visible together.
//   - Events of the most recent changes are kept, up to Config.HistoryEvents
//     and Config.HistoryBytes. Watches and old views are served from them.
//     Asking for more gets [ErrCompacted].
//
// Limits: everything lives in memory, and there is no persistence here.
package store
