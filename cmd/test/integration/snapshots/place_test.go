//go:build integration

package snapshots

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/skiff-sh/skiff/backup"
)

// noise is size bytes that are no two parts alike.
func noise(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8(sha256.Sum256([]byte("noise"))), size)
}

func sum(t *testing.T, r io.Reader) (string, int64) {
	t.Helper()
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil)), n
}

// TestPlace: files of every size around the part's come back as they went, under
// their own prefix.
func TestPlace(t *testing.T) {
	g := startGateway(t)
	ctx := t.Context()
	p := g.place(t, "s3://"+bucket+"/a/b", nil)
	if list, err := p.List(ctx); err != nil || len(list) != 0 {
		t.Fatalf("nothing there yet: %v, %v", list, err)
	}
	const part = 8 << 20
	sizes := map[string]int64{"empty": 0, "one": 1, "less": part - 1, "part": part, "more": part + 1, "parts": 3 * part, "many": 5*part + 12345}
	for name, size := range sizes {
		if err := p.Create(ctx, name, noise(size)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r, e, err := p.Open(ctx, name)
		if err != nil || e.Size != size {
			t.Fatalf("%s: %+v, %v", name, e, err)
		}
		got, n := sum(t, r)
		r.Close()
		if want, _ := sum(t, noise(size)); got != want || n != size {
			t.Errorf("%s: %d bytes came back, not what went", name, n)
		}
	}
	for _, other := range []string{"s3://" + bucket, "s3://" + bucket + "/a/b/c", "s3://" + bucket + "/a/bb"} {
		if err := g.place(t, other, nil).Create(ctx, "foreign", strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	list, err := p.List(ctx)
	if err != nil || len(list) != len(sizes) || !slices.IsSortedFunc(list, func(a, b backup.Entry) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%v, %v", list, err)
	}
	for _, e := range list {
		if e.Size != sizes[e.Name] || time.Since(e.Modified).Abs() > time.Hour {
			t.Errorf("%+v", e)
		}
	}
	if err := p.Create(ctx, "one", strings.NewReader("other")); !errors.Is(err, backup.ErrExists) {
		t.Errorf("again: %v", err)
	}
	for range 2 {
		if err := p.Remove(ctx, "one"); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := p.Open(ctx, "one"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	if got := g.objects(ctx, t); len(got) != len(sizes)-1+3 || len(g.unfinished(ctx, t)) != 0 {
		t.Errorf("there is %v, unfinished %v", got, g.unfinished(ctx, t))
	}
}

// TestPlaceRefuses: what an operator gets wrong is said so that it can be put
// right.
func TestPlaceRefuses(t *testing.T) {
	g := startGateway(t)
	dir := t.TempDir()
	wrong := func(name, id, secret string) string {
		path := filepath.Join(dir, name)
		write(t, path, "[default]\naws_access_key_id = "+id+"\naws_secret_access_key = "+secret+"\n", 0o600)
		return path
	}
	for name, c := range map[string]struct {
		place  string
		change func(*backup.S3Config)
		want   string
	}{
		"bucket":  {"s3://nothing-there/p", nil, "make the bucket"},
		"key":     {"s3://" + bucket, func(c *backup.S3Config) { c.CredentialsFile = wrong("key", "nobody", "secret") }, "access key"},
		"secret":  {"s3://" + bucket, func(c *backup.S3Config) { c.CredentialsFile = wrong("secret", "key", "guess") }, "not that of the access key"},
		"CA":      {"s3://" + bucket, func(c *backup.S3Config) { c.CAFile = "" }, "give the CA file"},
		"plain":   {"s3://" + bucket, func(c *backup.S3Config) { c.Endpoint, c.Insecure = "http://"+g.addr, true }, g.addr},
		"region":  {"s3://" + bucket, func(c *backup.S3Config) { c.Region = "mars-1" }, "another region"},
		"nobody":  {"s3://" + bucket, func(c *backup.S3Config) { c.Endpoint = "https://127.0.0.1:1" }, "connection refused"},
		"no name": {"s3://" + bucket, func(c *backup.S3Config) { c.Endpoint = "https://s3.invalid" }, "lookup s3.invalid"},
	} {
		began := time.Now()
		_, err := g.place(t, c.place, c.change).List(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
		if err := g.place(t, c.place, c.change).Create(t.Context(), "x", strings.NewReader("x")); err == nil {
			t.Errorf("%s: a file could be stored", name)
		}
		if took := time.Since(began); took > 5*time.Minute {
			t.Errorf("%s: took %s", name, took)
		}
	}
	// Keys that are exchanged are read again.
	keys := wrong("exchanged", "key", "old")
	p := g.place(t, "s3://"+bucket, func(c *backup.S3Config) { c.CredentialsFile = keys })
	if _, err := p.List(t.Context()); err == nil {
		t.Error("the old key fits")
	}
	wrong("exchanged", "key", "secret")
	if _, err := p.List(t.Context()); err != nil {
		t.Errorf("the new key: %v", err)
	}
	if err := os.Chmod(keys, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := p.List(t.Context()); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("keys that others can read: %v", err)
	}
}

// TestPlaceInterrupted: an upload that ends in the middle leaves no object,
// whoever ended it, and in the end no parts.
func TestPlaceInterrupted(t *testing.T) {
	g := startGateway(t)
	p := g.place(t, "s3://"+bucket+"/p", nil)
	name := backup.Name{Cluster: "abc", At: time.Now(), Revision: 1}.String()
	// half calls f when half of the content has been read.
	half := func(f func()) io.Reader {
		return io.MultiReader(noise(20<<20), readerFunc(func([]byte) (int, error) { f(); return 0, io.EOF }), noise(20<<20))
	}
	gone := errors.New("gone")
	if err := p.Create(t.Context(), name, io.MultiReader(noise(20<<20), readerFunc(func([]byte) (int, error) { return 0, gone }))); !errors.Is(err, gone) {
		t.Errorf("the content fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := p.Create(ctx, name, half(cancel)); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if o, u := g.objects(t.Context(), t), g.unfinished(t.Context(), t); len(o) != 0 || len(u) != 0 {
		t.Errorf("there is %v, unfinished %v", o, u)
	}
	began := time.Now()
	if err := p.Create(t.Context(), name, half(g.kill)); err == nil {
		t.Error("stored in a service that died")
	}
	if took := time.Since(began); took > 3*time.Minute {
		t.Errorf("a dead service was noticed after %s", took)
	}
	g.start(t)
	if o := g.objects(t.Context(), t); len(o) != 0 {
		t.Errorf("there is %v after the service died", o)
	}
	// What a killed process, or a service that died, left is swept; others' is not.
	core := minio.Core{Client: g.client(t)}
	for _, key := range []string{"p/" + name, "p/foreign", name} {
		if _, err := core.NewMultipartUpload(t.Context(), bucket, key, minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Sweep(t.Context(), "abc", time.Now().Add(-time.Hour)); err != nil || len(g.unfinished(t.Context(), t)) < 3 {
		t.Errorf("%v; young uploads are left: %v", err, g.unfinished(t.Context(), t))
	}
	if err := p.Sweep(t.Context(), "other", time.Now().Add(time.Hour)); err != nil || len(g.unfinished(t.Context(), t)) < 3 {
		t.Errorf("%v; other clusters' uploads are left: %v", err, g.unfinished(t.Context(), t))
	}
	if err := p.Sweep(t.Context(), "abc", time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	left := g.unfinished(t.Context(), t)
	slices.Sort(left)
	if want := []string{"p/foreign", name}; !slices.Equal(left, want) {
		t.Errorf("unfinished are %v, want %v", left, want)
	}
	// And then it works.
	if err := p.Create(t.Context(), name, bytes.NewReader(make([]byte, 20<<20))); err != nil {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
