package nodehealth

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
)

// office is a server as Leases see it.
type office struct {
	term uint64
	err  error
	now  time.Time
	rev  uint64
}

func (o *office) leases(t *testing.T) *Leases {
	t.Helper()
	l, err := NewLeases(LeasesConfig{Verify: func(context.Context) (uint64, error) { return o.term, o.err },
		Revision: func() uint64 { return o.rev }, now: func() time.Time { return o.now }})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLeases(t *testing.T) {
	ctx := context.Background()
	o := &office{term: 3, now: time.Unix(1000, 0), rev: 77}
	l := o.leases(t)
	renew := func() error {
		b, err := l.Handle(ctx, "server-2", []byte(`{"node":"n"}`))
		if err != nil {
			return err
		}
		var g Grant
		if err := json.Unmarshal(b, &g); err != nil || g.Seconds != 20 || g.Revision != o.rev {
			t.Errorf("grant %s: %v", b, err)
		}
		return nil
	}
	if err := renew(); !errors.Is(err, ErrNotLeading) {
		t.Errorf("granted before the duty runs: %v", err)
	}
	if _, ok := l.OverAt("n", 0); ok {
		t.Error("judged by a server that does not lead")
	}
	if err := l.begin(ctx); err != nil {
		t.Fatal(err)
	}
	over := func(tolerated time.Duration, want time.Duration) {
		t.Helper()
		at, ok := l.OverAt("n", tolerated)
		if got := at.Sub(time.Unix(1000, 0)); !ok || got != want {
			t.Errorf("over after %v, %v; want %v", got, ok, want)
		}
	}
	over(0, 31*time.Second)                // a whole lease from the leader's start, a twentieth, the margin
	over(300*time.Second, 325*time.Second) // what the pod tolerates, if that is longer
	o.now = o.now.Add(5 * time.Second)
	if err := renew(); err != nil {
		t.Fatal(err)
	}
	over(0, 36*time.Second)
	if _, err := l.Handle(ctx, "", []byte(`{}`)); err == nil || !strings.Contains(err.Error(), "node is missing") {
		t.Errorf("request without a node: %v", err)
	}
	l.Freeze(true)
	if _, ok := l.OverAt("n", 0); ok {
		t.Error("judged while evictions are frozen")
	}
	o.now = o.now.Add(4 * time.Second)
	l.alive()
	l.Freeze(false)
	over(0, 40*time.Second)
	// A process that was stopped begins anew.
	o.now = o.now.Add(time.Hour)
	over(0, time.Hour+40*time.Second)

	// Deposed: neither grants nor judges, even if it leads again meanwhile.
	o.err = errors.New("no majority")
	if err := renew(); !errors.Is(err, ErrNotLeading) {
		t.Errorf("granted without a majority: %v", err)
	}
	o.err, o.term = nil, 5
	if err := renew(); !errors.Is(err, ErrNotLeading) || !errors.Is(l.Confirm(ctx), ErrNotLeading) {
		t.Errorf("granted in another term: %v", err)
	}
	if err := l.begin(ctx); err != nil {
		t.Fatal(err)
	}
	if err := renew(); err != nil {
		t.Error(err)
	}
	// What an earlier term granted counts as granted until this one began.
	over(0, o.now.Sub(time.Unix(1000, 0))+31*time.Second)
}

// The duties of a term begin together: that evictions are frozen may be said
// before the first majority has confirmed the term.
func TestFreezeBeforeTheTermIsConfirmed(t *testing.T) {
	o := &office{term: 1, now: time.Unix(1000, 0)}
	l := o.leases(t)
	l.Freeze(true)
	if err := l.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.OverAt("n", 0); ok {
		t.Error("judged while evictions are frozen")
	}
	l.Freeze(false)
	if at, ok := l.OverAt("n", 0); !ok || !at.Equal(time.Unix(1031, 0)) {
		t.Errorf("over at %v, %v", at, ok)
	}
}

// Its clock going on is seen while the duty runs.
func TestPulse(t *testing.T) {
	o := &office{term: 1, now: time.Unix(1000, 0)}
	l := o.leases(t)
	if err := l.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		o.now = o.now.Add(time.Second)
		l.alive()
	}
	if at, ok := l.OverAt("n", 0); !ok || !at.Equal(time.Unix(1031, 0)) {
		t.Errorf("over at %v, %v", at, ok)
	}
}

func TestRunEnds(t *testing.T) {
	o := &office{term: 1, now: time.Now()}
	l := o.leases(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	for end := time.Now().Add(10 * time.Second); ; {
		if _, err := l.grant(ctx, "n"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("never grants")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := l.grant(context.Background(), "n"); !errors.Is(err, ErrNotLeading) {
		t.Errorf("grants after its end: %v", err)
	}
}

func TestHandler(t *testing.T) {
	var asked string
	var fail error
	h := Handler(func(_ context.Context, method string, body []byte) ([]byte, error) {
		asked = method + " " + string(body)
		return []byte(`{"seconds":20,"revision":5}`), fail
	}, slog.New(slog.DiscardHandler))
	agent := &user.DefaultInfo{Name: "system:node:n", Groups: []string{"system:nodes"}}
	for _, tc := range []struct {
		name   string
		method string
		user   user.Info
		fail   error
		code   int
		says   string
		asked  string
	}{
		{"a node", http.MethodPut, agent, nil, 200, `{"seconds":20,"revision":5}`, `lease {"node":"n"}`},
		{"no leader", http.MethodPut, agent, errors.New("no leader"), 503, "no lease can be granted now: no leader", `lease {"node":"n"}`},
		{"an administrator", http.MethodPut, &user.DefaultInfo{Name: "admin", Groups: []string{"system:masters"}}, nil, 403, "only a node can hold a lease: admin is none", ""},
		{"a node's name alone", http.MethodPut, &user.DefaultInfo{Name: "system:node:n"}, nil, 403, "only a node", ""},
		{"nobody", http.MethodPut, nil, nil, 401, "who asks is not known", ""},
		{"reading", http.MethodGet, agent, nil, 405, "only PUT is allowed", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked, fail = "", tc.fail
			r := httptest.NewRequest(tc.method, LeasePath, strings.NewReader(`{"node":"another"}`))
			if tc.user != nil {
				r = r.WithContext(genericrequest.WithUser(r.Context(), tc.user))
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			body, _ := io.ReadAll(w.Body)
			if w.Code != tc.code || !strings.Contains(string(body), tc.says) || asked != tc.asked {
				t.Errorf("%d %q, asked %q", w.Code, body, asked)
			}
		})
	}
}
