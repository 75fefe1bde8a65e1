package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
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

func TestHTTPGet(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "example.com" || r.Header.Get("X-A") != "b" || r.URL.Query().Get("q") != "1" {
			w.WriteHeader(400)
		}
	})
	mux.HandleFunc("/304", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(304) })
	mux.HandleFunc("/500", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/500", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.example/", http.StatusFound)
	})
	for _, scheme := range []string{"http", "https"} {
		srv := httptest.NewUnstartedServer(mux)
		if scheme == "https" {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		defer srv.Close()
		u, _ := url.Parse(srv.URL)
		port, _ := strconv.Atoi(u.Port())
		for path, want := range map[string]string{"ok?q=1": "", "/304": "", "/away": "", "/500": "HTTP probe failed with statuscode: 500", "/here": "HTTP probe failed with statuscode: 500"} {
			h := &v1.HTTPGetAction{Path: path, Port: intstr.FromString("web"), Scheme: v1.URIScheme(strings.ToUpper(scheme)),
				HTTPHeaders: []v1.HTTPHeader{{Name: "Host", Value: "example.com"}, {Name: "X-A", Value: "b"}}}
			ok, msg := HTTPGet(t.Context(), h, u.Hostname(), []v1.ContainerPort{{Name: "web", ContainerPort: int32(port)}})
			if ok != (want == "") || msg != want {
				t.Errorf("%s %s: %v %q", scheme, path, ok, msg)
			}
		}
	}
}

func TestClosedPortExecAndGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
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

	try := func(h v1.ProbeHandler, exec ExecFunc) (bool, string) {
		return ask(t.Context(), Config{Probe: &v1.Probe{ProbeHandler: h, TimeoutSeconds: 1}, Host: "127.0.0.1", Exec: exec})
	}
	tcp := v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(port)}}
	if ok, msg := try(tcp, nil); !ok {
		t.Error(msg)
	}
	if ok, msg := try(v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: int32(port)}}, nil); !ok {
		t.Error(msg)
	}
	if ok, msg := try(v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: int32(port), Service: ptr.To("bad")}}, nil); ok || msg != `service unhealthy (responded with "NOT_SERVING")` {
		t.Error(ok, msg)
	}
	srv.Stop()
	<-done
	if ok, msg := try(tcp, nil); ok || !strings.Contains(msg, "connection refused") {
		t.Error(ok, msg)
	}
	cmd := v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"check", "it"}}}
	if ok, msg := try(cmd, func(context.Context, []string) (string, int, error) { return "sad\n", 1, nil }); ok || msg != "sad" {
		t.Error(ok, msg)
	}
	slow := func(ctx context.Context, _ []string) (string, int, error) { <-ctx.Done(); return "", -1, ctx.Err() }
	if ok, msg := try(cmd, slow); ok || msg != `command timed out: "check it" timed out after 1s` {
		t.Error(ok, msg)
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
				Settled: func(ok bool) { settled.Store(ok) }, Failed: func(string) { failed.Add(1) }})
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
