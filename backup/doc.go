// Package backup saves, checks and restores the state of a cluster as one file.
// The file has the format of package fsm; what it holds besides the API objects
// are skiff's own keys, certificates among them, so that a file and the cluster
// key let a bare host take over. Secrets and keys in it are sealed (cluster/seal);
// all else is not: keep it from others.
//
// Promises:
//
//   - Save leaves a whole, verified file under the final name, or none.
//   - Restore verifies everything before it writes, writes into a directory that
//     must not exist yet, and leaves it complete or not at all.
//   - Neither overwrites anything unless told to.
package backup

import "errors"

var (
	// ErrExists says that what would be written is there already.
	ErrExists = errors.New("already exists")
)

// Progress is told how many bytes and keys have been dealt with so far. Of is
// the number of bytes there will be, 0 if that is not known. It is called often
// and must be quick.
type Progress func(p Step)

// Step is a state of progress.
type Step struct {
	What  string // "saving", "verifying", "restoring"
	Bytes int64
	Of    int64
}

func (p Progress) tell(what string, bytes, of int64) {
	if p != nil {
		p(Step{What: what, Bytes: bytes, Of: of})
	}
}
