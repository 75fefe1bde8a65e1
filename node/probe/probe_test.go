package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTally(t *testing.T) {
	for _, tc := range []struct {
		name    string
		start   *bool
		s, f    int32
		answers string // + passed, - failed
		want    string // + settled as passed, - as failed, . nothing
	}{
		{"readiness", ptr.To(false), 1, 3, "-+--+---+", ".+.....-+"},
		{"readiness twice", ptr.To(false), 2, 1, "+-++-", "...+-"},
		{"liveness", ptr.To(true), 1, 3, "+--+---", "......-"},
		{"startup", nil, 1, 2, "-+", ".+"},
		{"startup fails", nil, 1, 2, "--", ".-"},
	} {
		tl := tally{success: tc.s, failure: tc.f}
		if tc.start != nil {
			tl.settle(*tc.start)
		}
		got := ""
		for _, a := range tc.answers {
			switch changed, is := tl.count(a == '+'); {
			case !changed:
				got += "."
			case is:
				got += "+"
			default:
				got += "-"
			}
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// on starts a server and returns its port.
func on(t *testing.T, h http.Handler, tls bool) int {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	if tls {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().(*net.TCPAddr).Port
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "example.com" || r.Header.Get("X-A") != "b" || r.URL.Query().Get("q") != "1" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") || r.Header.Get("Accept") != "*/*" {
			w.WriteHeader(400)
		}
	})
	mux.HandleFunc("/304", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(304) })
	mux.HandleFunc("/500", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/500", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "http://elsewhere.example/")
		w.WriteHeader(http.StatusFound)
		_, _ = w.Write([]byte("gone"))
	})
	const redirected = "Probe terminated redirects, Response body: "
	for _, scheme := range []string{"HTTP", "HTTPS"} {
		port := on(t, mux, scheme == "HTTPS")
		for _, tc := range []struct {
			path string
			want Result
			msg  string
		}{
			{"ok?q=1", Passed, ""}, {"/304", Warned, redirected}, {"/away", Warned, redirected + "gone"},
			{"/500", Failed, "HTTP probe failed with statuscode: 500"}, {"/here", Failed, "HTTP probe failed with statuscode: 500"},
		} {
			h := &v1.HTTPGetAction{Path: tc.path, Port: intstr.FromString("web"), Scheme: v1.URIScheme(scheme),
				HTTPHeaders: []v1.HTTPHeader{{Name: "Host", Value: "example.com"}, {Name: "X-A", Value: "b"}}}
			r, msg := askHTTP(t.Context(), h, "127.0.0.1", []v1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}, time.Minute)
			if r != tc.want || msg != tc.msg {
				t.Errorf("%s %s: %v %q", scheme, tc.path, r, msg)
			}
		}
	}
	if r, msg := askHTTP(t.Context(), &v1.HTTPGetAction{Port: intstr.FromString("nosuch")}, "127.0.0.1", nil, time.Second); r != Unknown || msg != "couldn't find port: nosuch" {
		t.Error(r, msg)
	}
}

func TestHeadersThatAreGivenEmptyAreNotSent(t *testing.T) {
	port := on(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.Header["Accept"])+len(r.Header["User-Agent"]) > 0 {
			w.WriteHeader(400)
		}
	}), false)
	h := &v1.HTTPGetAction{Port: intstr.FromInt(port), HTTPHeaders: []v1.HTTPHeader{{Name: "accept"}, {Name: "user-agent"}}}
	if r, msg := askHTTP(t.Context(), h, "127.0.0.1", nil, time.Minute); r != Passed {
		t.Error(msg)
	}
}

// Some servers speak nothing but HTTP/2 on their secure port.
func TestHTTP2(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
		}
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	h := &v1.HTTPGetAction{Port: intstr.FromInt(srv.Listener.Addr().(*net.TCPAddr).Port), Scheme: v1.URISchemeHTTPS}
	for range 3 {
		if r, msg := askHTTP(t.Context(), h, "127.0.0.1", nil, time.Minute); r != Passed {
			t.Error(msg)
		}
	}
}

func TestHTTPTimeout(t *testing.T) {
	release := make(chan struct{})
	port := on(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-release }), false)
	defer close(release)
	r, msg := askHTTP(t.Context(), &v1.HTTPGetAction{Port: intstr.FromInt(port)}, "127.0.0.1", nil, 20*time.Millisecond)
	if r != Failed || !strings.Contains(msg, "Client.Timeout exceeded while awaiting headers") {
		t.Error(r, msg)
	}
}

func TestHTTPHook(t *testing.T) {
	told := 0
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.UserAgent(), "kube-lifecycle/") && r.Header.Get("Authorization") == "" {
			told++
		}
		w.WriteHeader(500)
	})
	plain, secure := on(t, h, false), on(t, h, true)
	for _, tc := range []struct {
		port   int
		scheme v1.URIScheme
		fell   bool
	}{{plain, "", false}, {secure, "HTTPS", false}, {plain, "HTTPS", true}} {
		told = 0
		a := &v1.HTTPGetAction{Port: intstr.FromInt(tc.port), Scheme: tc.scheme}
		if tc.fell {
			a.HTTPHeaders = []v1.HTTPHeader{{Name: "Authorization", Value: "secret"}}
		}
		fell, err := HTTPHook(t.Context(), a, "127.0.0.1", nil)
		if err != nil || told != 1 || (fell != "") != tc.fell {
			t.Errorf("%+v: %q %v, told %d times", tc, fell, err, told)
		}
	}
	if _, err := HTTPHook(t.Context(), &v1.HTTPGetAction{Port: intstr.FromInt(1)}, "127.0.0.1", nil); err == nil {
		t.Error("nobody listens there")
	}
}

// own is an address that no connection begins at, which could take a port of it
// while it is closed.
const own = "127.78.0.1"

func TestClosedPortExecAndGRPC(t *testing.T) {
	l, err := net.Listen("tcp", own+":0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	srv := grpc.NewServer()
	hs := health.NewServer()
	hs.SetServingStatus("bad", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(srv, hs)
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	mute := grpc.NewServer() // speaks gRPC, has no health service
	ml, err := net.Listen("tcp", own+":0")
	if err != nil {
		t.Fatal(err)
	}
	muted := make(chan struct{})
	go func() { _ = mute.Serve(ml); close(muted) }()
	defer func() { mute.Stop(); <-muted }()

	timeout := int32(60)
	try := func(h v1.ProbeHandler, exec ExecFunc) (Result, string) {
		return ask(t.Context(), Config{Probe: &v1.Probe{ProbeHandler: h, TimeoutSeconds: timeout}, Host: own, Exec: exec})
	}
	check := func(h v1.ProbeHandler, exec ExecFunc, want Result, text string) {
		t.Helper()
		if r, msg := try(h, exec); r != want || !strings.Contains(msg, text) {
			t.Errorf("%v %q, want %v %q", r, msg, want, text)
		}
	}
	tcp := v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(port)}}
	rpc := func(port int, service *string) v1.ProbeHandler {
		return v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: int32(port), Service: service}}
	}
	check(tcp, nil, Passed, "")
	check(rpc(port, nil), nil, Passed, "")
	check(rpc(port, ptr.To("bad")), nil, Failed, `service unhealthy (responded with "NOT_SERVING")`)
	check(rpc(port, ptr.To("other")), nil, Failed, "error: health rpc probe failed: ")
	check(rpc(ml.Addr().(*net.TCPAddr).Port, nil), nil, Failed, "does not implement the grpc health protocol")
	srv.Stop()
	<-done
	check(tcp, nil, Failed, "connection refused")
	timeout = 1
	check(rpc(port, nil), nil, Failed, "timeout: failed to connect service")
	timeout = 60
	check(v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromString("nosuch")}}, nil, Unknown, "couldn't find port: nosuch")
	check(v1.ProbeHandler{}, nil, Unknown, "no handler")
	cmd := v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"check", "it"}}}
	check(cmd, func(context.Context, []string) (string, int, error) { return "sad\n", 1, nil }, Failed, "sad")
	check(cmd, func(context.Context, []string) (string, int, error) { return "", 0, errors.New("no such file") }, Unknown, "no such file")
	timeout = 1
	check(cmd, func(ctx context.Context, _ []string) (string, int, error) { <-ctx.Done(); return "", -1, ctx.Err() },
		Failed, `command timed out: "check it" timed out after 1s`)
}

// TestGRPCWaitsForAServer: one that begins to listen within the timeout passes.
func TestGRPCWaitsForAServer(t *testing.T) {
	l, err := net.Listen("tcp", own+":0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	srv := grpc.NewServer()
	healthpb.RegisterHealthServer(srv, health.NewServer())
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(50 * time.Millisecond)
		if l, err := net.Listen("tcp", addr); err != nil {
			t.Error(err)
		} else {
			_ = srv.Serve(l)
		}
	}()
	if r, msg := askGRPC(t.Context(), addr, "", time.Minute); r != Passed {
		t.Error(msg)
	}
	srv.Stop()
	<-done
}

func TestFirstDelay(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name    string
		started time.Duration // before now
		initial int32
		want    time.Duration
	}{
		{"starts now", 0, 5, 5 * time.Second},
		{"no delay", 0, 0, 0},
		{"runs for a while", 3 * time.Second, 5, 2 * time.Second},
		{"runs for long", time.Hour, 5, 0},
		{"the clock went back an hour", -time.Hour, 5, 5 * time.Second},
	} {
		c := Config{Probe: &v1.Probe{InitialDelaySeconds: tc.initial}, StartedAt: now.Add(-tc.started)}
		if d := firstDelay(c, time.Second, now); d != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, d, tc.want)
		}
		c.Spread = true
		if d := firstDelay(c, time.Second, now); d < tc.want || d > tc.want+time.Second {
			t.Errorf("%s: spread to %v", tc.name, d)
		}
	}
}

func TestRunKinds(t *testing.T) {
	for _, kind := range []Kind{Startup, Liveness, Readiness} {
		ctx, cancel := context.WithCancel(t.Context())
		var settled atomic.Value
		var failed atomic.Int32
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			Run(ctx, Config{Kind: kind, Probe: &v1.Probe{FailureThreshold: 1, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{}}}, StartedAt: time.Now(),
				Exec:    func(context.Context, []string) (string, int, error) { return "", 1, nil },
				Settled: func(ok bool) { settled.Store(ok) }, Tell: func(string, string) { failed.Add(1) }})
		}()
		if kind == Readiness { // goes on, and stays what it was
			for failed.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}
		<-ended
		cancel()
		if kind != Readiness && settled.Load() != false || kind == Readiness && settled.Load() != nil {
			t.Errorf("%s settled as %v", kind, settled.Load())
		}
	}
}

// TestWhatCouldNotBeAskedDoesNotCount: a liveness probe whose command is not
// there restarts nothing.
func TestWhatCouldNotBeAskedDoesNotCount(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked, told, outcomes := 0, []string{}, 0
	Run(ctx, Config{Kind: Liveness, Probe: &v1.Probe{FailureThreshold: 1, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{}}}, StartedAt: time.Now(),
		Exec:    func(context.Context, []string) (string, int, error) { asked++; return "", 0, errors.New("not there") },
		Settled: func(bool) { t.Error("settled") },
		Tell:    func(reason, msg string) { told = append(told, reason+" "+msg) },
		Asked: func(r Result, _ time.Duration) {
			if outcomes++; r != Unknown || r.Label() != "unknown" {
				t.Error(r.Label())
			}
			cancel()
		}})
	if asked != attempts || outcomes != 1 || len(told) != 1 || told[0] != "Unhealthy Liveness probe errored and resulted in unknown state: not there" {
		t.Errorf("asked %d times, told %q", asked, told)
	}
}

// BenchmarkAsk measures what the node pays for a question, its server not
// counted in (it runs in the same process all the same).
func BenchmarkAsk(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	port := intstr.FromInt(srv.Listener.Addr().(*net.TCPAddr).Port)
	for name, h := range map[string]v1.ProbeHandler{"http": {HTTPGet: &v1.HTTPGetAction{Port: port}}, "tcp": {TCPSocket: &v1.TCPSocketAction{Port: port}}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if r, msg := ask(b.Context(), Config{Probe: &v1.Probe{ProbeHandler: h, TimeoutSeconds: 5}, Host: "127.0.0.1"}); r != Passed {
					b.Fatal(msg)
				}
			}
		})
	}
}

// TestAskedTogether: probes that begin at any time are asked at the same moments
// from then on, a period apart.
func TestAskedTogether(t *testing.T) {
	for _, since := range []time.Duration{-250 * time.Millisecond, 0, 1, 99 * time.Millisecond, 100 * time.Millisecond, 12345 * time.Millisecond} {
		at := ticksBegan.Add(since)
		got := together(at)
		if d := got.Sub(at); d < 0 || d >= tick || got.Sub(ticksBegan)%tick != 0 {
			t.Errorf("%s after the beginning: %s later", since, d)
		}
		if next := together(got.Add(time.Second)); next.Sub(got) != time.Second {
			t.Errorf("the next one is %s later", next.Sub(got))
		}
	}
}
