package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
)

// memoryPlace is a Place elsewhere that can fail.
type memoryPlace struct {
	mu    sync.Mutex
	files map[string][]byte
	fail  error
	tries int // of Create
}

func (m *memoryPlace) String() string { return "memory" }

func (m *memoryPlace) List(context.Context) (out []Entry, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, b := range m.files {
		out = append(out, Entry{Name: name, Size: int64(len(b))})
	}
	return out, m.fail
}

func (m *memoryPlace) Open(_ context.Context, name string) (io.ReadCloser, Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.files[name]
	if !ok {
		return nil, Entry{}, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), Entry{Name: name, Size: int64(len(b))}, nil
}

func (m *memoryPlace) Create(ctx context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tries++
	if err = errors.Join(err, ctx.Err(), m.fail); err != nil {
		return err
	}
	if m.files[name] != nil {
		return ErrExists
	}
	if m.files == nil {
		m.files = map[string][]byte{}
	}
	m.files[name] = b
	return nil
}

func (m *memoryPlace) Remove(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.files, name)
	return m.fail
}

func (m *memoryPlace) failWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memoryPlace) names() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.files {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func TestSaveTo(t *testing.T) {
	key := newKey(t)
	f := sample(t, 5000)
	for _, o := range []SaveOptions{{}, {Compress: true}, {Encrypt: []age.Recipient{key.Recipient()}}, {Compress: true, Encrypt: []age.Recipient{key.Recipient()}}} {
		for _, p := range []Place{Dir(t.TempDir()), &memoryPlace{}} {
			for _, name := range []string{"", "mine"} {
				info, n, err := SaveTo(t.Context(), source(f), p, name, o)
				if err != nil {
					t.Fatal(err)
				}
				if name != "" && n.Entry.Name != name || name == "" && (n.Name.Revision != info.Revision || n.Name.Cluster != "testclus" || n.Entry.Name != n.Name.String()) {
					t.Errorf("saved as %+v", n)
				}
				r, e, err := p.Open(t.Context(), n.Entry.Name)
				if err != nil {
					t.Fatal(err)
				}
				plain, err := NewReader(r, Unlock{key})
				if err != nil {
					t.Fatal(err)
				}
				got, err := read(t.Context(), plain, func() {}, nil)
				if err != nil || got.Hash != info.Hash || e.Size != n.Size || info.TotalSize != e.Size || info.Compressed != o.Compress || info.Encrypted != (o.Encrypt != nil) {
					t.Errorf("%T %q: %+v, %v; saved %+v, entry %+v", p, name, got, err, info, e)
				}
				plain.Close()
				r.Close()
			}
		}
	}
}

// TestSaveToBroken: whatever arrives or happens, no file does.
func TestSaveToBroken(t *testing.T) {
	var whole bytes.Buffer
	if err := source(sample(t, 3000))(t.Context(), &whole); err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(whole.Bytes())
	damaged[len(damaged)/2] ^= 1
	gone := errors.New("gone")
	for name, c := range map[string]struct {
		source Source
		fail   error
		want   string
	}{
		"empty":     {source: bytesSource(nil), want: "no snapshot"},
		"text":      {source: bytesSource([]byte("<html>502 Bad Gateway</html>")), want: "no snapshot"},
		"truncated": {source: bytesSource(whole.Bytes()[:whole.Len()-9]), want: "no whole snapshot"},
		"damaged":   {source: bytesSource(damaged), want: "no whole snapshot"},
		"longer":    {source: bytesSource(append(bytes.Clone(whole.Bytes()), 0)), want: "no whole snapshot"},
		"failing":   {source: func(_ context.Context, w io.Writer) error { w.Write(whole.Bytes()[:5000]); return gone }, want: "gone"},
		"early":     {source: func(context.Context, io.Writer) error { return gone }, want: "gone"},
		"place":     {source: bytesSource(whole.Bytes()), fail: gone, want: "gone"},
	} {
		p := &memoryPlace{fail: c.fail}
		_, _, err := SaveTo(t.Context(), c.source, p, "", SaveOptions{Compress: true})
		if err == nil || !strings.Contains(err.Error(), c.want) || len(p.names()) > 0 {
			t.Errorf("%s: %v, there is %v", name, err, p.names())
		}
	}
}

func TestRetention(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	file := func(cluster string, hours, revision int) Entry {
		return Entry{Name: Name{Cluster: cluster, At: now.Add(time.Duration(-hours) * time.Hour), Revision: int64(revision)}.String()}
	}
	all := []Entry{
		file("a", 1, 50), file("a", 2, 50), file("a", 30, 40), file("a", -500, 30), file("a", 99, 20),
		file("b", 99, 7), {Name: "skiff-a-20261121T110000Z-r50.snap.tmp"}, {Name: "notes.txt"}, {Name: "skiff-a-20261121T110000Z-r50.snap.bz2"},
	}
	yes := func(Entry) bool { return true }
	for name, c := range map[string]struct {
		r    Retention
		good func(Entry) bool
		want []Entry
	}{
		"no limit":                 {Retention{}, yes, nil},
		"count":                    {Retention{Keep: 2}, yes, []Entry{all[4], all[2], all[3]}},
		"one":                      {Retention{Keep: 1}, yes, []Entry{all[4], all[2], all[1], all[3]}},
		"age":                      {Retention{MaxAge: 24 * time.Hour}, yes, []Entry{all[4], all[2]}},
		"both":                     {Retention{Keep: 3, MaxAge: 90 * time.Minute}, yes, []Entry{all[4], all[2], all[1], all[3]}},
		"the good one is old":      {Retention{Keep: 2}, func(e Entry) bool { return e == all[4] || e == all[5] }, []Entry{all[2], all[3]}},
		"none is known to be good": {Retention{Keep: 1, MaxAge: time.Minute}, func(Entry) bool { return false }, nil},
		"the only one is very old": {Retention{MaxAge: time.Minute}, func(e Entry) bool { return e == all[5] }, nil},
	} {
		got := c.r.Expired(slices.Clone(all), now, c.good)
		if fmt.Sprint(got) != fmt.Sprint(c.want) && len(got)+len(c.want) > 0 {
			t.Errorf("%s: %v\nwant %v", name, got, c.want)
		}
	}
}

func TestName(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 999, time.FixedZone("x", 3600))
	for want, n := range map[string]Name{
		"skiff-ABCDEFGH-20260102T020405Z-r12.snap":          {Cluster: "ABCDEFGHIJKL", At: at, Revision: 12},
		"skiff-test1-20260102T020405Z-r1.snap.zst":          {Cluster: "te/s-t1", At: at, Revision: 1, Compressed: true},
		"skiff-0-20260102T020405Z-r1.snap.age":              {At: at, Revision: 1, Encrypted: true},
		"skiff-a-20260102T020405Z-r2000000001.snap.zst.age": {Cluster: "a", At: at, Revision: 2000000001, Compressed: true, Encrypted: true},
	} {
		if n.String() != want {
			t.Errorf("%+v is %s, want %s", n, n, want)
		}
		got, ok := ParseName(want)
		if !ok || got.String() != want || got.Revision != n.Revision || !got.At.Equal(at.Truncate(time.Second)) {
			t.Errorf("%s is read as %+v", want, got)
		}
	}
	for _, s := range []string{"", "skiff-a-20260102T020405Z-r1.snap.age.zst", "skiff-a-20261302T020405Z-r1.snap", "skiff-a-20260102T020405Z-r99999999999999999999.snap",
		".skiff-a-20260102T020405Z-r1.snap", "skiff-a-20260102T020405Z-r1.snap.tmp-1", "skiff-a-20260102T020405Z-r-1.snap", "x/skiff-a-20260102T020405Z-r1.snap"} {
		if n, ok := ParseName(s); ok {
			t.Errorf("%q is read as %+v", s, n)
		}
	}
}

// creates is how often Create was called.
func (m *memoryPlace) creates() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tries
}
