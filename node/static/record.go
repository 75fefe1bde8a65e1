package static

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// record is what the node knows of a pod: one file of JSON for each, named for
// the pod's UID.
type record struct {
	Manifest string  `json:"manifest"` // the file's name when the pod was last read from it
	Pod      *v1.Pod `json:"pod"`      // with its last status
}

// records are the files below one directory. Safe for concurrent use.
type records struct {
	dir string

	mu   sync.Mutex
	pods map[types.UID]record // those that are to run
}

// openRecords reads what an earlier process has left. A file that can't be read
// is said and removed: its pod starts as if nothing were known of it.
func openRecords(dir string, log *slog.Logger) (*records, error) {
	r := &records{dir: dir, pods: map[types.UID]record{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("records of static pods: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("records of static pods: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		uid, ok := strings.CutSuffix(e.Name(), ".json")
		var rec record
		if ok {
			b, err := os.ReadFile(path)
			if err == nil {
				err = json.Unmarshal(b, &rec)
			}
			if err == nil && (rec.Pod == nil || string(rec.Pod.UID) != uid) {
				err = errors.New("it is of another pod")
			}
			if err == nil {
				r.pods[rec.Pod.UID] = rec
				continue
			}
			log.Warn("the record of a static pod is damaged: the pod's counters start anew", "file", path, "err", err)
		}
		if err := os.Remove(path); err != nil {
			log.Warn("removing a file that is no record of a static pod", "err", err)
		}
	}
	return r, nil
}

// put keeps a pod that is to run; the status of one that is known already stays. After
// an error the pod is kept with its next status.
func (r *records) put(manifest string, p *v1.Pod) (*v1.Pod, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.pods[p.UID]
	if known {
		next := *p
		next.Status = carriedOver(p, old.Pod.Status)
		p = &next
	}
	rec := record{manifest, p}
	r.pods[p.UID] = rec
	return p, r.write(rec)
}

// carriedOver is what of a status counts for a pod that starts again: an end
// that the node brought about, as by its shutdown, is none for ever.
// The counters of its containers go on. One that never restarts stays ended if it
// has run.
func carriedOver(p *v1.Pod, st v1.PodStatus) v1.PodStatus {
	ran := slices.ContainsFunc(st.ContainerStatuses, func(s v1.ContainerStatus) bool { return s.State.Terminated != nil })
	switch {
	case st.Phase != v1.PodFailed || st.Reason == "" || st.Reason == "DeadlineExceeded":
		return st
	case ran && p.Spec.RestartPolicy == v1.RestartPolicyNever:
		return st
	}
	return v1.PodStatus{Phase: v1.PodPending, InitContainerStatuses: st.InitContainerStatuses, ContainerStatuses: st.ContainerStatuses}
}

// status keeps a pod's new status. A pod that is not to run any more is left.
func (r *records) status(p *v1.Pod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.pods[p.UID]
	if !ok {
		return nil
	}
	next := *rec.Pod
	next.Status = p.Status
	rec.Pod = &next
	if err := r.write(rec); err != nil {
		return err
	}
	r.pods[p.UID] = rec
	return nil
}

// drop forgets a pod.
func (r *records) drop(uid types.UID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pods, uid)
	if err := os.Remove(r.path(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record of a static pod: %w", err)
	}
	return nil
}

func (r *records) all() (out []record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.pods {
		out = append(out, rec)
	}
	return out
}

func (r *records) path(uid types.UID) string { return filepath.Join(r.dir, string(uid)+".json") }

// write replaces a file: after a crash it is the old one or the new one.
func (r *records) write(rec record) (err error) {
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record of a static pod: %w", err)
	}
	f, err := os.CreateTemp(r.dir, ".new-")
	if err != nil {
		return fmt.Errorf("record of a static pod: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("record of a static pod: %w", err)
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), r.path(rec.Pod.UID))
}
