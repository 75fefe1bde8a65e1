package cluster

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/consensus"
	"github.com/skiff-sh/skiff/cluster/live"
	"github.com/skiff-sh/skiff/fsm"
)

const (
	// RestorePath takes a plain snapshot by POST and restores it into the running
	// cluster; the answer is a RestoreEvent on each line.
	RestorePath = "/skiff/v1/restore"
	// RestoreDryRun is a parameter of RestorePath: with "true" the answer says what
	// would be done.
	RestoreDryRun = "dryRun"

	// restoreKey has the last RestoreRecord. It is also what makes the outcome of a
	// restore certain: the log takes one only while its own record is there.
	restoreKey = "/skiff/restore"
	// A restore under way keeps others out for so long after its last sign of life.
	restoreBusy = time.Minute
	// maxRevision leaves room for what comes after.
	maxRevision = 1 << 60
)

// RestoreEvent is progress, or the end: Report or Error.
type RestoreEvent struct {
	Step    string           `json:"step,omitempty"`    // "received", "prepared", "spreading", "restoring"
	Servers map[string]int64 `json:"servers,omitempty"` // bytes that each has, by ID
	Of      int64            `json:"of,omitempty"`
	Report  *RestoreReport   `json:"report,omitempty"`
	Error   string           `json:"error,omitempty"`
}

// RestoreReport says what a restore has done, or would do.
type RestoreReport struct {
	DryRun   bool         `json:"dryRun"`
	Snapshot *backup.Info `json:"snapshot"`
	// Revision of the state after the restore; in a dry run that before.
	Revision int64 `json:"revision"`
	// Objects are the differences from the present to what is restored: what comes
	// back is in Added, what is lost in Removed.
	Objects *backup.Difference `json:"objects"`
	Pods    *live.Pods         `json:"pods"`
}

// RestoreRecord is what the state knows of a restore into the running cluster.
type RestoreRecord struct {
	ID       string    `json:"id"`
	Phase    string    `json:"phase"` // "begun", "done", "failed"
	At       time.Time `json:"at"`
	Server   string    `json:"server"`   // that was asked
	Snapshot string    `json:"snapshot"` // its hash
	Revision int64     `json:"revision"` // its revision
}

// errRestoring says that another restore is under way.
var errRestoring = errors.New("another restore is under way")

func (s *Server) restoreHandlers() map[string]http.Handler {
	return map[string]http.Handler{RestorePath: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "only POST is allowed", http.StatusMethodNotAllowed)
			return
		}
		dry := r.URL.Query().Get(RestoreDryRun)
		if dry != "" && dry != "true" {
			http.Error(w, RestoreDryRun+"="+dry+": want true, or nothing", http.StatusBadRequest)
			return
		}
		// An answer begins only when the whole file was read: clients that send look
		// for it then.
		w.Header().Set("Content-Type", "application/x-ndjson")
		out := json.NewEncoder(w)
		tell := func(e RestoreEvent) {
			if out.Encode(e) == nil {
				_ = http.NewResponseController(w).Flush()
			}
		}
		report, err := s.restoreLive(r.Context(), r.Body, dry != "", tell)
		if err != nil {
			s.cfg.Logger.Warn("restore into the running cluster", "dryRun", dry != "", "error", err)
			tell(RestoreEvent{Error: err.Error()})
			return
		}
		tell(RestoreEvent{Report: report})
	})}
}

// restoreLive verifies and prepares the snapshot in body, brings it to all servers
// and has it restored. Until the last step nothing has changed, and an error says
// so; the outcome of that is waited for beyond ctx.
func (s *Server) restoreLive(ctx context.Context, body io.Reader, dry bool, tell func(RestoreEvent)) (*RestoreReport, error) {
	path, err := s.node.Upload(func(w io.Writer) error { return backup.FromReader(body)(ctx, w) })
	if err != nil {
		return nil, fmt.Errorf("receive the snapshot: %w", err)
	}
	defer os.Remove(path)
	tell(RestoreEvent{Step: "received"})
	file, err := backup.Open(path, nil)
	if err != nil {
		return nil, sent(err)
	}
	defer file.Close()
	info, err := backup.Verify(ctx, path, nil, nil)
	if err != nil {
		return nil, sent(err)
	}
	if err := s.node.ReadIndex(ctx); err != nil {
		return nil, err
	}
	if level := s.node.FSM().Level(); info.FeatureLevel > level {
		return nil, fmt.Errorf("the snapshot is of feature level %d and the cluster works at %d: skiff upgrade finalize first", info.FeatureLevel, level)
	}
	if info.Revision > maxRevision {
		return nil, fmt.Errorf("revision %d of the snapshot is none that a cluster reaches", info.Revision)
	}
	report := &RestoreReport{DryRun: dry, Snapshot: info}
	var values interface{ Used() map[string]int64 }
	before := s.node.FSM().Capture()
	ready, err := s.node.FileToSpread(ctx, func(w io.Writer) (err error) {
		report.Pods, err = live.Prepare(ctx, file, w, live.Config{Now: before.View(), ClusterID: before.ClusterID,
			Sealed: func(own map[string][]byte) (live.Values, error) {
				v, err := s.sealer.Foreign(own)
				values = v
				return v, err
			}})
		return err
	})
	if err != nil {
		return nil, err
	}
	restored := false
	defer func() {
		if !restored {
			short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			s.node.DropFile(short, ready.Hash)
		}
	}()
	tell(RestoreEvent{Step: "prepared", Of: ready.TotalSize})
	if report.Objects, err = s.restoreDiff(ctx, before, ready.Hash, dry); err != nil {
		return nil, err
	}
	if dry {
		report.Revision = before.Revision
		return report, nil
	}
	r := &fsm.Restore{File: ready.Hash, Size: ready.TotalSize, Keep: live.Keep, Except: live.Except}
	for key, rev := range values.Used() {
		r.Expect = append(r.Expect, fsm.Expectation{Key: key, ModRevision: rev})
	}
	report.Revision, restored, err = s.proposeRestore(ctx, r, info, tell)
	return report, err
}

// sent says of an error what it is about, without the name that the file has here.
func sent(err error) error {
	for _, e := range []error{fsm.ErrNotSnapshot, fsm.ErrSnapshotVersion, fsm.ErrTruncated, fsm.ErrDamaged, backup.ErrEncrypted} {
		if errors.Is(err, e) {
			return fmt.Errorf("what was sent can't be restored: %w", e)
		}
	}
	return err
}

// restoreDiff compares the present with what a restore brings; details say which
// fields differ. What a restore keeps is in neither.
func (s *Server) restoreDiff(ctx context.Context, before *fsm.Snapshot, file string, details bool) (*backup.Difference, error) {
	f, err := backup.Open(s.node.FilePath(file), nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, w := io.Pipe()
	go func() { w.CloseWithError(before.Write(ctx, w)) }()
	defer r.Close()
	open := func(map[string][]byte) (backup.OpenValue, error) {
		return func(key string, value []byte) ([]byte, error) { return s.sealer.Open(ctx, key, value) }, nil
	}
	d, err := backup.Diff(ctx, r, f, backup.DiffOptions{Details: details, OpenA: open, OpenB: open})
	if err != nil {
		return nil, fmt.Errorf("compare the snapshot with the present: %w", err)
	}
	d.Own = nil                                                         // stays as it is
	kept := func(c backup.Change) bool { return c.Resource == "nodes" } // see live.Keep
	for _, list := range []*[]backup.Change{&d.Added, &d.Changed, &d.Removed} {
		var out []backup.Change
		for _, c := range *list {
			if !kept(c) {
				out = append(out, c)
			}
		}
		*list = out
	}
	return d, nil
}

// pauseDuties ends what decides on caches of the state, until that is another. The
// caller of the leader waits for ten seconds.
func (s *Server) pauseDuties(ctx context.Context) (resume func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	return s.leader.Pause(ctx)
}

// record writes a RestoreRecord where the state has revision expect of it.
func (s *Server) record(ctx context.Context, r RestoreRecord, expect int64) (fsm.Result, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return fsm.Result{}, err
	}
	return s.node.Propose(ctx, fsm.One(fsm.Op{Type: fsm.Put, Key: restoreKey, Value: b, Expect: expect}))
}

// lastRestore is the record in the state; its revision is 0 if there is none.
func (s *Server) lastRestore() (r RestoreRecord, revision int64) {
	kv, ok := s.state.View().Get(restoreKey)
	if !ok {
		return r, 0
	}
	_ = json.Unmarshal(kv.Value, &r) // one that can't be read is none, and is replaced
	return r, kv.ModRevision
}

// beginRestore writes the record of a restore, whose revision it returns, unless
// another is under way.
func (s *Server) beginRestore(ctx context.Context, now RestoreRecord) (int64, error) {
	for begin := time.Now(); ; {
		last, rev := s.lastRestore()
		age := time.Since(last.At)
		switch {
		case last.ID == now.ID: // its answer was lost
			return rev, nil
		case last.Phase == "begun" && age < restoreBusy:
			return 0, fmt.Errorf("%w, on server %s since %v; it can be tried again in %v", errRestoring, last.Server, age.Round(time.Second), (restoreBusy - age).Round(time.Second))
		}
		r, err := s.record(ctx, now, rev)
		switch {
		case err == nil && r.Err == nil:
			return r.Revision, nil
		case err == nil:
			err = errRestoring // or this server lags
		case !errors.Is(err, consensus.ErrUnknownOutcome) && !errors.Is(err, consensus.ErrNoLeader):
			return 0, err
		}
		if time.Since(begin) > restoreBusy/4 {
			return 0, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return 0, err
		}
		if rerr := s.node.ReadIndex(ctx); rerr != nil {
			return 0, errors.Join(err, rerr)
		}
	}
}

// proposeRestore spreads the file and has it restored. restored is false only if
// that is certain.
func (s *Server) proposeRestore(ctx context.Context, r *fsm.Restore, info *backup.Info, tell func(RestoreEvent)) (revision int64, restored bool, err error) {
	now := RestoreRecord{ID: rand.Text(), Phase: "begun", At: time.Now().UTC(), Server: s.cfg.Name, Snapshot: info.Hash, Revision: info.Revision}
	rev, err := s.beginRestore(ctx, now)
	if err != nil {
		return 0, false, fmt.Errorf("%w; nothing was changed", err)
	}
	fail := func(err error) (int64, bool, error) {
		now.Phase = "failed"
		revision, restored, rerr := s.settleRestore(context.WithoutCancel(ctx), now, rev)
		if restored {
			return revision, true, nil
		}
		if rerr != nil {
			return 0, true, fmt.Errorf("%w; whether the snapshot was restored is not known: %w", err, rerr)
		}
		return 0, false, fmt.Errorf("%w; nothing was changed", err)
	}
	begin := time.Now()
	err = s.node.Spread(ctx, r.File, r.Size, func(have map[string]int64) {
		tell(RestoreEvent{Step: "spreading", Servers: have, Of: r.Size})
		if time.Since(begin) > restoreBusy/4 { // still at it
			begin, now.At = time.Now(), time.Now().UTC()
			if again, err := s.record(ctx, now, rev); err == nil && again.Err == nil {
				rev = again.Revision
			}
		}
	})
	if err != nil {
		return fail(err)
	}
	tell(RestoreEvent{Step: "restoring"})
	done := now
	done.Phase, done.At = "done", time.Now().UTC()
	b, err := json.Marshal(done)
	if err != nil {
		return fail(err)
	}
	r.Expect = append(r.Expect, fsm.Expectation{Key: restoreKey, ModRevision: rev})
	r.Ops = []fsm.Op{{Type: fsm.Put, Key: restoreKey, Value: b, Expect: fsm.Any}}
	ctx = context.WithoutCancel(ctx) // from here on it is done, or not, whoever waits for it
	result, err := s.node.Propose(ctx, fsm.Command{Restore: r})
	switch {
	case err != nil:
		return fail(err)
	case result.Err != nil:
		return fail(errors.New("the data keys of the cluster were rotated, or another restore began, meanwhile: try again"))
	}
	return result.Revision, true, nil
}

// settleRestore makes the outcome of a restore certain: it writes that the restore
// failed, which is possible only as long as that was not carried out, and which it
// then can't be any more.
func (s *Server) settleRestore(ctx context.Context, failed RestoreRecord, rev int64) (revision int64, restored bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, restoreBusy)
	defer cancel()
	for {
		r, err := s.record(ctx, failed, rev)
		if err == nil && r.Err == nil {
			return 0, false, nil
		}
		if err == nil { // somebody else has written it: this restore, or a later one
			if err = s.node.ReadIndex(ctx); err == nil {
				last, at := s.lastRestore()
				switch {
				case last.ID == failed.ID && last.Phase == "done":
					return at, true, nil
				case last.ID == failed.ID && last.Phase == "failed":
					return 0, false, nil
				case last.ID == failed.ID: // an own sign of life whose answer was lost
					rev = at
					continue
				}
				return 0, false, errRestoring
			}
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return 0, false, err
		}
		if errors.Is(err, consensus.ErrStopped) {
			return 0, false, err
		}
	}
}
