// Package seal keeps what is secret unreadable at rest: in the log, in snapshots
// and in backups.
//
// Two layers of keys: values are sealed with a data key (AES-256-GCM, the
// value's own key in the store as additional data, so no sealed value can be put
// in another's place). Data keys are in the replicated state under Prefix,
// themselves sealed with the cluster key, which is in a file on every server and
// nowhere else, or only under a passphrase.
//
// Invariants:
//
//   - A value sealed with a data key comes after that key in the log, so whoever
//     can read the value can read the key.
//   - A data key leaves the state only when no value is sealed with it, and after
//     a pause that outlasts every request that may still write with it.
//
// Limits: a nonce is drawn by chance, which is good for some four thousand
// million writes with one data key (Sealer.Rotate makes another). The cluster
// key itself is not replaced. What was deleted or rewritten stays in the files
// of the log until these are compacted and their blocks reused.
package seal
