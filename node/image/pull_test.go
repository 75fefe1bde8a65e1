package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestPullAndMount(t *testing.T) {
	s := openStore(t)
	host := newRegistry(t, "")
	base := gzLayer(t,
		entry{name: "data/"}, entry{name: "data/a", body: "a"}, entry{name: "data/b", body: "b"},
		entry{name: "gone/"}, entry{name: "gone/x", body: "x"}, entry{name: "own", body: "o", uid: 1234})
	top := gzLayer(t, entry{name: "data/"}, entry{name: "data/.wh.a"}, entry{name: "gone/"}, entry{name: "gone/.wh..wh..opq"}, entry{name: "gone/new", body: "n"})
	img := imageOf(t, nil, base, top)
	push(t, host+"/team/app:1", img)

	var mu sync.Mutex
	var last Progress
	got, err := s.Pull(context.Background(), host+"/team/app:1", nil, func(p Progress) { mu.Lock(); last = p; mu.Unlock() })
	if err != nil {
		t.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != id.String() || got.RepoTags[0] != host+"/team/app:1" || got.RepoDigests[0] != host+"/team/app@"+digest.String() || got.Size == 0 || got.Pinned {
		t.Errorf("image: %+v", got)
	}
	if last.Status != "Done" || last.Complete != last.Total || last.Total == 0 {
		t.Errorf("last progress: %+v", last)
	}
	for _, ref := range []string{host + "/team/app:1", got.ID, got.ID[7:19], host + "/team/app@" + digest.String()} {
		if g, ok := s.Get(ref); !ok || g.ID != got.ID {
			t.Errorf("Get(%s): %v", ref, ok)
		}
	}

	root, err := s.Mount(context.Background(), got.ID, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if exists(root, "data/a") || readFile(t, root, "data/b") != "b" || exists(root, "gone/x") || readFile(t, root, "gone/new") != "n" {
		t.Error("the layers do not add up to what the image means")
	}
	again, err := s.Mount(context.Background(), got.ID, "c1")
	if err != nil || again != root {
		t.Error("mounting again:", again, err)
	}
	if err := s.Remove(context.Background(), got.ID); !errors.Is(err, ErrInUse) {
		t.Error("removing a mounted image:", err)
	}
	if err := s.Unmount("c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(context.Background(), host+"/team/app:1"); err != nil {
		t.Fatal(err)
	}
	if l, err := s.List(); err != nil || len(l) != 0 || exists(s.path("layers", layerName(got.Layers[0]))) {
		t.Error("something is left of the image:", l, err)
	}
}

func TestPullByDigestAndPlatform(t *testing.T) {
	s := openStore(t)
	host := newRegistry(t, "")
	want := imageOf(t, nil, gzLayer(t, entry{name: "mine", body: "1"}))
	other := imageOf(t, func(c *v1.ConfigFile) { c.Architecture = "s390x" }, gzLayer(t, entry{name: "other", body: "1"}))
	p := platform()
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: want, Descriptor: v1.Descriptor{Platform: &p}})
	ref, err := name.ParseReference(host+"/multi:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, idx); err != nil {
		t.Fatal(err)
	}
	d, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Pull(context.Background(), host+"/multi@"+d.String(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := want.ConfigName()
	if got.ID != id.String() || len(got.RepoTags) != 0 || got.RepoDigests[0] != host+"/multi@"+d.String() {
		t.Errorf("%+v", got)
	}
	push(t, host+"/foreign:1", other)
	if _, err := s.Pull(context.Background(), host+"/foreign:1", nil, nil); err == nil || !strings.Contains(err.Error(), "linux/s390x") {
		t.Error("foreign platform:", err)
	}
}

func TestPullErrors(t *testing.T) {
	s := openStore(t)
	open, locked := newRegistry(t, ""), newRegistry(t, "u:p")
	img := imageOf(t, nil, gzLayer(t, entry{name: "f", body: "1"}))
	push(t, locked+"/x:1", img, remote.WithAuth(&authn.Basic{Username: "u", Password: "p"}))
	secret := func(host, auth string) []byte {
		return []byte(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(auth))))
	}
	for _, c := range []struct {
		ref    string
		secret []byte
		want   error
	}{
		{open + "/x:1", nil, ErrNotFound},
		{locked + "/x:1", nil, ErrUnauthorized},
		{locked + "/x:1", secret(locked, "u:wrong"), ErrUnauthorized},
		{locked + "/x:1", secret("elsewhere:5000", "u:p"), ErrUnauthorized},
		{locked + "/x:1", secret(locked, "u:p"), nil},
		{locked + "/x:1", secret("http://"+locked+"/v2/", "u:p"), nil},
		{"UPPER/case", nil, ErrInvalidName},
		{"a b", nil, ErrInvalidName},
		{"", nil, ErrInvalidName},
	} {
		var secrets [][]byte
		if c.secret != nil {
			secrets = append(secrets, c.secret)
		}
		k, err := Keychain(secrets...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pull(context.Background(), c.ref, k, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.ref, err, c.want)
		}
	}
	if _, err := Keychain([]byte("not json")); err == nil {
		t.Error("a broken pull secret is accepted")
	}
}

func TestMirrors(t *testing.T) {
	mirror, dead := newRegistry(t, ""), "127.0.0.1:1"
	push(t, mirror+"/cache/library/nginx:1", imageOf(t, nil, gzLayer(t, entry{name: "f", body: "1"})))
	s := openStore(t, func(c *Config) {
		c.Registries = map[string]Registry{"docker.io": {Mirrors: []string{"http://" + dead, "http://" + mirror + "/cache"}}}
	})
	img, err := s.Pull(context.Background(), "nginx:1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.RepoTags[0] != "docker.io/library/nginx:1" {
		t.Error("the image is named after the mirror:", img.RepoTags)
	}
	if _, err := Open(Config{Dir: t.TempDir(), Registries: map[string]Registry{"x": {Mirrors: []string{"ftp://y"}}}}); err == nil {
		t.Error("a mirror of unknown kind is accepted")
	}
}

// A registry on a private network that does not speak TLS is an error unless
// plain HTTP was asked for.
func TestNoSilentPlainHTTP(t *testing.T) {
	rt := &tlsOnly{plain: map[string]bool{"10.0.0.1:5000": true}}
	req, err := http.NewRequest(http.MethodGet, "http://10.0.0.2:5000/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "plainHTTP") {
		t.Error(err)
	}
}

// A download that breaks off is tried again; damaged content is not accepted.
func TestBrokenDownloads(t *testing.T) {
	var breaks atomic.Int32
	var mode atomic.Value
	mode.Store("")
	host := newRegistry(t, "", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && mode.Load() != "" {
				w = &mangler{ResponseWriter: w, mode: mode.Load().(string), n: &breaks}
			}
			next.ServeHTTP(w, r)
		})
	})
	big := strings.Repeat("some text that is not short ", 10_000)
	push(t, host+"/x:1", imageOf(t, nil, gzLayer(t, entry{name: "f", body: big})))
	s := openStore(t)
	mode.Store("cut")
	if _, err := s.Pull(context.Background(), host+"/x:1", nil, nil); err != nil {
		t.Fatal("not tried again:", err)
	}
	if breaks.Load() == 0 {
		t.Fatal("the download never broke")
	}
	s2 := openStore(t)
	mode.Store("flip")
	if _, err := s2.Pull(context.Background(), host+"/x:1", nil, nil); err == nil {
		t.Error("damaged content is accepted")
	}
	if l, err := s2.List(); err != nil || len(l) != 0 {
		t.Error("a broken image is listed", l, err)
	}
}

// mangler cuts the first large blob short, or flips a bit of every one.
type mangler struct {
	http.ResponseWriter
	mode string
	n    *atomic.Int32
}

func (m *mangler) Write(b []byte) (int, error) {
	if len(b) < 600 {
		return m.ResponseWriter.Write(b)
	}
	switch m.mode {
	case "cut":
		if m.n.Add(1) == 1 {
			_, _ = m.ResponseWriter.Write(b[:100])
			panic(http.ErrAbortHandler)
		}
	case "flip":
		b = append([]byte(nil), b...)
		b[len(b)/2] ^= 0x10
	}
	return m.ResponseWriter.Write(b)
}

func TestKeychainMatching(t *testing.T) {
	k, err := Keychain(
		[]byte(`{"auths":{"https://index.docker.io/v1/":{"username":"hub","password":"p"},"*.example.com":{"username":"wild","password":"p"},"r.example.com/team":{"username":"team","password":"p"}}}`),
		[]byte(`{"legacy:5000":{"username":"legacy","password":"p"}}`))
	if err != nil {
		t.Fatal(err)
	}
	for repo, want := range map[string]string{
		"index.docker.io/library/nginx": "hub",
		"r.example.com/team/app":        "team",
		"r.example.com/teams/app":       "wild",
		"a.b.example.com/x":             "",
		"legacy:5000/x":                 "legacy",
		"legacy.io/x":                   "",
	} {
		r, err := name.NewRepository(repo)
		if err != nil {
			t.Fatal(err)
		}
		a, err := k.Resolve(r)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := authn.Authorization(context.Background(), a)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Username != want {
			t.Errorf("%s: credentials of %q, want %q", repo, cfg.Username, want)
		}
	}
}

// All credentials for a registry are tried, those for more of the path first.
func TestCandidates(t *testing.T) {
	k, err := Keychain(
		[]byte(`{"auths":{"r.example.com":{"username":"a","password":"p"},"r.example.com/team":{"username":"team","password":"p"}}}`),
		[]byte(`{"auths":{"r.example.com":{"username":"b","password":"p"},"mirror.example.com":{"username":"mirror","password":"p"}}}`),
		[]byte(`{"auths":{"r.example.com":{"username":"a","password":"p"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"r.example.com/team/app:1": "team a b",
		"r.example.com/app":        "a b",
		"other.example.com/app":    "",
	} {
		list, err := Candidates(k, ref)
		if err != nil {
			t.Fatal(err)
		}
		user := func(c authn.Keychain, ref string) string {
			r, err := name.ParseReference(ref)
			if err != nil {
				t.Fatal(err)
			}
			a, err := c.Resolve(r.Context())
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := authn.Authorization(context.Background(), a)
			if err != nil {
				t.Fatal(err)
			}
			return cfg.Username
		}
		var got []string
		for _, c := range list {
			got = append(got, user(c, ref))
			if m := user(c, "mirror.example.com/app"); m != "mirror" {
				t.Errorf("%s: the mirror gets credentials of %q", ref, m)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", ref, got, want)
		}
	}
}

// Several stores on one directory pull the same layer at the same time: it is
// fetched once.
func TestConcurrentStores(t *testing.T) {
	var blobs atomic.Int32
	host := newRegistry(t, "", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				blobs.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	})
	img := imageOf(t, nil, gzLayer(t, entry{name: "f", body: strings.Repeat("x", 100_000)}))
	push(t, host+"/x:1", img)
	s := openStore(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := Open(s.cfg)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.Pull(context.Background(), host+"/x:1", nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := blobs.Load(); n != 8+1 { // each store's configuration, one layer
		t.Errorf("%d blobs fetched, want 9", n)
	}
}

func TestPullIsCancelled(t *testing.T) {
	block := make(chan struct{})
	host := newRegistry(t, "", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
				<-block
			}
			next.ServeHTTP(w, r)
		})
	})
	t.Cleanup(func() { close(block) })
	push(t, host+"/x:1", imageOf(t, nil, gzLayer(t, entry{name: "f", body: "1"})))
	s := openStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	go cancel()
	if _, err := s.Pull(ctx, host+"/x:1", nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
