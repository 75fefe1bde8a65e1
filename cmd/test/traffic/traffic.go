// Package traffic asks a service all the time, as its users would, and counts
// what was not answered: over a new connection for each request, over one that
// is kept for as long as it lives, and lookups of names. Nothing is asked twice:
// a request that fails, and a kept connection that breaks, have failed.
//
// Limits: HTTP over IPv4 without TLS. Lookups are the resolver's, which asks
// again after 5 s as resolv.conf has it; Slowest shows that.
package traffic

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// Timeout of a request or lookup.
const Timeout = 10 * time.Second

// maxFailures is how many are kept in full.
const maxFailures = 50

// Config says what to ask.
type Config struct {
	URL   string        // asked over new connections and over a kept one; empty: no requests
	Names []string      // looked up in turn
	Every time.Duration // pause between two requests of one kind
}

// The kinds of requests.
const (
	NewConnection  = "new connection"
	KeptConnection = "kept connection"
	Lookup         = "lookup"
)

// Failure is one request without an answer.
type Failure struct {
	Kind  string        `json:"kind"`
	Began time.Time     `json:"began"`
	After time.Duration `json:"after"` // nanoseconds
	Error string        `json:"error"`
}

func (f Failure) String() string {
	return fmt.Sprintf("%s %s, after %v: %s", f.Began.Format("15:04:05.000"), f.Kind, f.After.Round(time.Millisecond), f.Error)
}

// Report is what came of the requests so far. Maps are by kind.
type Report struct {
	Answered map[string]int           `json:"answered"`
	Slowest  map[string]time.Duration `json:"slowest"` // nanoseconds
	Failed   int                      `json:"failed"`
	Failures []Failure                `json:"failures,omitempty"` // the first ones
}

// Total is the number of answers.
func (r Report) Total() (n int) {
	for _, k := range r.Answered {
		n += k
	}
	return n
}

// Load is requests that go on until Stop.
type Load struct {
	cfg  Config
	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex // guards what follows
	report Report
}

// Start begins.
func Start(cfg Config) *Load {
	ctx, stop := context.WithCancel(context.Background())
	l := &Load{cfg: cfg, stop: stop, report: Report{Answered: map[string]int{}, Slowest: map[string]time.Duration{}}}
	if cfg.URL != "" {
		l.repeat(ctx, NewConnection, l.overNew)
		kept := &keptConnection{}
		l.repeat(ctx, KeptConnection, func(ctx context.Context) error { return kept.ask(ctx, cfg.URL) })
	}
	if len(cfg.Names) > 0 {
		next := 0
		l.repeat(ctx, Lookup, func(ctx context.Context) error {
			next++
			name := cfg.Names[next%len(cfg.Names)]
			addrs, err := net.DefaultResolver.LookupHost(ctx, name)
			if err == nil && len(addrs) == 0 {
				err = fmt.Errorf("%s has no address", name)
			}
			return err
		})
	}
	return l
}

// Stop ends the load when what is under way is answered, and gives the last
// report.
func (l *Load) Stop() Report {
	l.stop()
	l.done.Wait()
	return l.Report()
}

// Report of the requests so far.
func (l *Load) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := Report{Answered: map[string]int{}, Slowest: map[string]time.Duration{}, Failed: l.report.Failed}
	out.Failures = append(out.Failures, l.report.Failures...)
	for k, n := range l.report.Answered {
		out.Answered[k], out.Slowest[k] = n, l.report.Slowest[k]
	}
	return out
}

func (l *Load) repeat(ctx context.Context, kind string, ask func(context.Context) error) {
	l.done.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			try, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
			err := ask(try)
			cancel()
			l.count(kind, began, err)
			select {
			case <-ctx.Done():
			case <-time.After(l.cfg.Every):
			}
		}
	})
}

func (l *Load) count(kind string, began time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	took := time.Since(began)
	if err != nil {
		l.report.Failed++
		if len(l.report.Failures) < maxFailures {
			l.report.Failures = append(l.report.Failures, Failure{kind, began, took, err.Error()})
		}
		return
	}
	l.report.Answered[kind]++
	l.report.Slowest[kind] = max(l.report.Slowest[kind], took)
}

func (l *Load) overNew(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.cfg.URL, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	return whole(resp)
}

// whole reads an answer to its end.
func whole(resp *http.Response) error {
	_, err := io.Copy(io.Discard, resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return err
}

// keptConnection is used until it breaks. An http.Transport would hide that.
type keptConnection struct {
	conn net.Conn
	in   *bufio.Reader
	age  int // requests so far
}

func (k *keptConnection) ask(ctx context.Context, where string) error {
	u, err := url.Parse(where)
	if err != nil {
		return err
	}
	if k.conn == nil {
		addr := u.Host
		if u.Port() == "" {
			addr = net.JoinHostPort(u.Hostname(), "80")
		}
		if k.conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", addr); err != nil {
			k.conn = nil
			return err
		}
		k.in, k.age = bufio.NewReader(k.conn), 0
	}
	if err := k.exchange(ctx, u); err != nil {
		err = fmt.Errorf("request %d of the connection %s: %w", k.age+1, k.conn.LocalAddr(), err)
		k.conn.Close()
		k.conn = nil
		return err
	}
	k.age++
	return nil
}

func (k *keptConnection) exchange(ctx context.Context, u *url.URL) error {
	deadline, _ := ctx.Deadline()
	if err := k.conn.SetDeadline(deadline); err != nil {
		return err
	}
	req := &http.Request{Method: http.MethodGet, URL: u, Host: u.Host, ProtoMajor: 1, ProtoMinor: 1}
	if err := req.Write(k.conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(k.in, req)
	if err != nil {
		return err
	}
	return whole(resp)
}
