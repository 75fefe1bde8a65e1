package binary

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

func TestHTTP(t *testing.T) {
	t.Parallel()
	var got order.Report
	answer, status := `{"id":"7","action":"fetch"}`, http.StatusOK
	content := bytes.Repeat([]byte("0123456789"), 100)
	var ranges []string
	ignoresRange := false
	mux := http.NewServeMux()
	mux.HandleFunc(order.MemberPath, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && json.NewDecoder(r.Body).Decode(&got) != nil {
			t.Error("no report")
		}
		w.WriteHeader(status)
		io.WriteString(w, answer)
	})
	mux.HandleFunc(order.BinaryPath+"abc", func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		if ignoresRange {
			r.Header.Del("Range")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	h := &HTTP{Client: server.Client(), Base: server.URL}
	ctx := t.Context()

	if o, err := h.Order(ctx); err != nil || o.ID != "7" || o.Action != order.Fetch {
		t.Errorf("%+v, %v", o, err)
	}
	want := order.Report{Order: "7", Phase: order.Done, Version: "2.0.0", At: time.Unix(1, 0).UTC()}
	if err := h.Report(ctx, want); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	answer, status = `{"message":"no order for you"}`, http.StatusNotFound
	if o, err := h.Order(ctx); err != nil || o != nil {
		t.Errorf("none: %+v, %v", o, err)
	}
	answer, status = `{"message":"who are you?"}`, http.StatusForbidden
	if _, err := h.Order(ctx); err == nil || !strings.Contains(err.Error(), "403 Forbidden: who are you?") {
		t.Errorf("%v", err)
	}
	if err := h.Report(ctx, want); err == nil {
		t.Error("a refused report is an error")
	}
	answer, status = `{"id":`, http.StatusOK
	if _, err := h.Order(ctx); err == nil {
		t.Error("half an order is an error")
	}
	for _, ignoresRange = range []bool{false, true} {
		for _, at := range []int64{0, 10, 999} {
			body, err := h.Binary(ctx, "abc", at)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(b, content[at:]) {
				t.Errorf("from %d: %d bytes, %v", at, len(b), err)
			}
			body.Close()
		}
	}
	if !slices.Equal(ranges, []string{"", "bytes=10-", "bytes=999-", "", "bytes=10-", "bytes=999-"}) {
		t.Errorf("asked for %q", ranges)
	}
	if _, err := h.Binary(ctx, "missing", 0); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v", err)
	}
}

// A binary comes through breaks of the way and servers that have not got it yet.
func TestFetchGoesOn(t *testing.T) {
	t.Parallel()
	content, b := aProgram(t, character{Version: "2.0.0"})
	var asked atomic.Int32
	var offsets []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		offsets = append(offsets, r.Header.Get("Range"))
		switch asked.Add(1) {
		case 1:
			http.Error(w, "not here", http.StatusNotFound)
		case 2: // it dies in the middle
			w.Header().Set("Content-Length", "1000000")
			w.Write(content[:500_000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		default:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	defer server.Close()
	s := openStore(t)
	e := &Executor{store: s, log: slog.New(slog.DiscardHandler)}
	if err := e.fetch(t.Context(), &HTTP{Client: server.Client(), Base: server.URL}, b); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Get(b.SHA256); !ok || len(offsets) != 3 || offsets[0] != "" || offsets[1] != "" || offsets[2] != "bytes=500000-" {
		t.Errorf("%v, asked for %q", ok, offsets)
	}
	// What is wrong with the binary itself is not asked for twice.
	b.Version = "3.0.0"
	s = openStore(t)
	e.store = s
	offsets = nil
	if err := e.fetch(t.Context(), &HTTP{Client: server.Client(), Base: server.URL}, b); err == nil || len(offsets) != 1 {
		t.Errorf("%v, asked %d times", err, len(offsets))
	}
}

func TestPut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bin", "skiff")
	for i, want := range []bool{true, false} {
		if changed, err := Put(path); err != nil || changed != want {
			t.Errorf("%d: %v, %v", i, changed, err)
		}
	}
	if err := os.WriteFile(path, []byte("something else"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o750); err != nil {
		t.Fatal(err)
	}
	if changed, err := Put(path); err != nil || !changed {
		t.Errorf("%v, %v", changed, err)
	}
	own, err := Sum("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if sum, err := Sum(path); err != nil || sum != own {
		t.Errorf("%s, %v", sum, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o750 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 1 {
		t.Errorf("left behind: %v, %v", all, err)
	}
	if _, err := Put(t.TempDir()); err == nil {
		t.Error("over a directory")
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	p, err := findProcess(os.Getpid())
	if err != nil || !p.lives() {
		t.Errorf("%+v, %v", p, err)
	}
	other := p
	other.Start++
	if other.lives() || (process{}).lives() {
		t.Error("a process that is none lives")
	}
	other = p
	other.Boot = "another"
	if other.lives() {
		t.Error("a process of another boot lives")
	}
}
