package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// pullRecords remembers with which credentials images were pulled: a pod uses
// an image that is there only if it could have pulled it, too. Of an image
// that was imported by hand there is no record; it is everybody's. There is one
// small file for each image, below dir.
type pullRecords struct {
	dir    string
	mu     sync.Mutex // of the files
	active map[string]int
}

// pullRecord says who may use an image, by repository.
type pullRecord struct {
	Repositories map[string]pullAccess `json:"repositories"`
}

type pullAccess struct {
	Anyone      bool     `json:"anyone,omitempty"`      // it was pulled without credentials
	Credentials []string `json:"credentials,omitempty"` // see image.CredentialID
}

func (r *pullRecords) path(imageID string) string {
	return filepath.Join(r.dir, strings.ReplaceAll(imageID, ":", "-")+".json")
}

// intent is the file of a pull under way.
func (r *pullRecords) intent(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return filepath.Join(r.dir, "pulling-"+hex.EncodeToString(sum[:16]))
}

// pulling is called before a pull with credentials begins.
func (r *pullRecords) pulling(ref string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	if err := replaceFile(r.dir, filepath.Base(r.intent(ref)), []byte(ref), true); err != nil {
		return err
	}
	if r.active == nil {
		r.active = map[string]int{}
	}
	r.active[ref]++
	return nil
}

// over is called when it has ended and is recorded, or has failed. Others, with
// other credentials, may still be under way.
func (r *pullRecords) over(ref string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active[ref]--; r.active[ref] > 0 {
		return nil
	}
	delete(r.active, ref)
	if err := os.Remove(r.intent(ref)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// read returns nil for an image that has no record.
func (r *pullRecords) read(imageID string) (*pullRecord, error) {
	b, err := os.ReadFile(r.path(imageID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	rec := &pullRecord{}
	if err == nil {
		err = json.Unmarshal(b, rec)
	}
	if err != nil {
		return nil, fmt.Errorf("reading who may use image %s: %w", imageID, err)
	}
	return rec, nil
}

// pulled records that an image came from a repository with these credentials.
func (r *pullRecords) pulled(imageID, repository, credential string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, err := r.read(imageID)
	if rec == nil || err != nil { // what can't be read is no reason to refuse what is known now
		rec = &pullRecord{}
	}
	a := rec.Repositories[repository]
	if a.Anyone || credential != "" && slices.Contains(a.Credentials, credential) {
		return nil
	}
	if credential == "" {
		a = pullAccess{Anyone: true}
	} else {
		a.Credentials = append(a.Credentials, credential)
	}
	if rec.Repositories == nil {
		rec.Repositories = map[string]pullAccess{}
	}
	rec.Repositories[repository] = a
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	return replaceFile(r.dir, filepath.Base(r.path(imageID)), b, true)
}

// mayUse says whether an image that is there may be used without asking its
// registry. credentials, all that the pod has, is only called if that matters.
func (r *pullRecords) mayUse(imageID, ref, repository string, credentials func() ([]string, error)) (bool, error) {
	r.mu.Lock()
	rec, err := r.read(imageID)
	r.mu.Unlock()
	if err != nil {
		return false, err
	}
	if rec == nil {
		_, err := os.Stat(r.intent(ref))
		return errors.Is(err, fs.ErrNotExist), nil
	}
	a, ok := rec.Repositories[repository]
	if !ok || a.Anyone {
		return ok, nil
	}
	mine, err := credentials()
	return err == nil && slices.ContainsFunc(mine, func(c string) bool { return c != "" && slices.Contains(a.Credentials, c) }), err
}

// sweep forgets images that are no more.
func (r *pullRecords) sweep(have func(imageID string) bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		id := strings.Replace(strings.TrimSuffix(e.Name(), ".json"), "-", ":", 1)
		if !have(id) {
			err = errors.Join(err, os.Remove(filepath.Join(r.dir, e.Name())))
		}
	}
	return err
}
