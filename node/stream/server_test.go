package stream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	clientexec "k8s.io/client-go/util/exec"

	"github.com/skiff-sh/skiff/node/meter"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// box is a sandbox that answers without any container.
type box struct{ pod.Sandbox }

func (box) Exec(_ context.Context, id string, c runtime.ExecConfig, in io.Reader, out, errs io.Writer, resize <-chan runtime.Size) (int, error) {
	if c.TTY {
		if s, ok := <-resize; ok {
			fmt.Fprintf(out, "%dx%d", s.Width, s.Height)
		}
		return 0, nil
	}
	fmt.Fprintf(out, "%s in %s: ", strings.Join(c.Args, " "), id)
	if in != nil {
		if _, err := io.Copy(out, in); err != nil {
			return 0, err
		}
	}
	fmt.Fprint(errs, "oops")
	return 42, nil
}

func (box) Attach(ctx context.Context, _ string, in io.Reader, out, _ io.Writer, _ bool, _ <-chan runtime.Size) error {
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	<-ctx.Done() // the container runs on
	return ctx.Err()
}

func (box) DialPort(ctx context.Context, port int32) (net.Conn, error) {
	if port != 80 {
		return nil, errors.New("connect: connection refused")
	}
	a, b := net.Pipe()
	go func() {
		defer b.Close()
		buf := make([]byte, 4)
		if _, err := io.ReadFull(b, buf); err == nil {
			_, _ = b.Write(bytes.ToUpper(buf))
		}
	}()
	return a, nil
}

func (box) Events(ctx context.Context) <-chan runtime.Event {
	ch := make(chan runtime.Event)
	go func() { <-ctx.Done(); close(ch) }()
	return ch
}
func (box) Containers() []runtime.ContainerStatus { return nil }
func (box) PodStats(context.Context) (runtime.Stats, error) {
	return runtime.Stats{CPUUsageNanos: 2_500_000_000, MemoryWorkingSet: 1 << 20}, nil
}
func (box) Stats(context.Context) (map[string]runtime.Stats, error) {
	return map[string]runtime.Stats{"id-1": {ID: "id-1", CPUUsageNanos: 1_500_000_000, MemoryWorkingSet: 4096}}, nil
}

type pods struct{ v *pod.View }

func (p pods) Views() []*pod.View { return []*pod.View{p.v} }
func (p pods) Find(ns, name string, _ types.UID) (*pod.View, error) {
	if p.v.Pod.Namespace == ns && p.v.Pod.Name == name {
		return p.v, nil
	}
	return nil, pod.ErrNoPod
}

type noImages struct{}

func (noImages) MountUsage(string) (int64, int64, error) { return 512, 1, nil }

// ca signs certificates for one test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour),
		Subject: pkix.Name{CommonName: "ca"}, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca{cert, key}
}

func (c ca) issue(t *testing.T, cn string, orgs ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{CommonName: cn, Organization: orgs},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (c ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// serve starts the node API and returns its address and a client of it.
func serve(t *testing.T) (base string, c ca, client *tls.Config, dir string) {
	t.Helper()
	return serveAsking(t, nil)
}

// serveAsking is serve with somebody to ask who others are.
func serveAsking(t *testing.T, api kubernetes.Interface) (base string, c ca, client *tls.Config, dir string) {
	t.Helper()
	c = newCA(t)
	dir = t.TempDir()
	serving := c.issue(t, "system:node:n1")
	v := &pod.View{Sandbox: box{}, Pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"},
		Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{{Name: "waiting", State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ContainerCreating"}}}},
			EphemeralContainerStatuses: []v1.ContainerStatus{{Name: "debug", State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}}}}},
		Containers: map[string]pod.ContainerView{
			"c":       {ID: "id-1", Running: true, LogPath: filepath.Join(dir, "1.log"), PrevLog: filepath.Join(dir, "0.log")},
			"waiting": {}, "debug": {}}}
	if err := os.WriteFile(filepath.Join(dir, "1.log"), []byte("2026-01-01T00:00:00Z stdout F out\n2026-01-01T00:00:01Z stderr F err\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(Config{Pods: pods{v}, Images: noImages{}, Client: api, Meter: meter.New("n1"), NodeName: "n1", DataDir: dir, Logger: slog.New(slog.DiscardHandler),
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{serving}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: c.pool(), NextProtos: []string{"http/1.1"}}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "https://" + l.Addr().String(), c, &tls.Config{RootCAs: c.pool(), Certificates: []tls.Certificate{c.issue(t, callerName)}}, dir
}

func get(t *testing.T, cfg *tls.Config, u string) (int, string) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: cfg}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Get(u)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func TestOnlyTheClusterMayCall(t *testing.T) {
	base, c, cfg, _ := serve(t)
	if code, body := get(t, cfg, base+"/healthz"); code != 200 || body != "ok" {
		t.Errorf("%d %s", code, body)
	}
	as := func(cert tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: c.pool(), Certificates: []tls.Certificate{cert}}
	}
	if code, _ := get(t, as(c.issue(t, "admin", callerGroup)), base+"/pods"); code != 200 {
		t.Errorf("an administrator got %d", code)
	}
	if code, _ := get(t, as(c.issue(t, "system:node:n2", "system:nodes")), base+"/pods"); code != 401 {
		t.Errorf("another node got %d", code)
	}
	if code, body := get(t, as(newCA(t).issue(t, callerName)), base+"/healthz"); code != 0 {
		t.Errorf("a stranger got %d %s", code, body)
	}
	if code, body := get(t, &tls.Config{RootCAs: c.pool()}, base+"/healthz"); code != 401 {
		t.Errorf("nobody got %d %s", code, body)
	}
}

func TestLogs(t *testing.T) {
	base, _, cfg, dir := serve(t)
	base += "/containerLogs/ns/p/"
	for path, want := range map[string]string{
		"c":                               "200 out\nerr\n",
		"c?tailLines=1":                   "200 err\n",
		"c?stream=Stdout":                 "200 out\n",
		"c?timestamps=true&stream=Stderr": "200 2026-01-01T00:00:01Z err\n",
		"c?limitBytes=2":                  "200 ou",
		"c?tailLines=-1":                  "400 tailLines: \"-1\" must be a number of at least 0\n",
		"c?follow=maybe":                  "400 follow: \"maybe\" is not a boolean\n",
		"c?previous=true":                 "400 previous terminated container \"c\" in pod \"p\" not found\n",
		"waiting":                         "400 container \"waiting\" in pod \"p\" is waiting to start: ContainerCreating\n",
		"debug":                           "400 container \"debug\" in pod \"p\" is waiting to start: trying and failing to pull image\n",
		"nope":                            "404 container nope is not valid for pod p\n",
	} {
		code, body := get(t, cfg, base+path)
		if got := fmt.Sprintf("%d %s", code, body); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "0.log"), []byte("2026-01-01T00:00:00Z stdout F before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, body := get(t, cfg, base+"c?previous=true"); body != "before\n" {
		t.Errorf("previous: %q", body)
	}
}

// Who follows the log of a container that has just ended does not wait for ever,
// though its sandbox knows nothing of it any more.
func TestForgottenContainerHasEnded(t *testing.T) {
	select {
	case <-whenEnded(t.Context(), box{}, "id-1"):
	case <-time.After(time.Minute):
		t.Error("it is waited for")
	}
}

// restConfig lets client-go's streaming clients talk to the node directly.
func restConfig(t *testing.T, base string, c ca, cfg *tls.Config) *rest.Config {
	t.Helper()
	rc := &rest.Config{Host: base}
	rc.Transport = nil
	rc.TLSClientConfig = rest.TLSClientConfig{CAData: pemCert(c.cert.Raw), CertData: pemCert(cfg.Certificates[0].Certificate[0]), KeyData: pemKey(t, cfg.Certificates[0])}
	return rc
}

func TestExecAttachPortForward(t *testing.T) {
	base, c, cfg, _ := serve(t)
	rc := restConfig(t, base, c, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stream := func(path string, o remotecommand.StreamOptions) error {
		u, err := url.Parse(base + path)
		if err != nil {
			t.Fatal(err)
		}
		ex, err := remotecommand.NewSPDYExecutor(rc, "POST", u)
		if err != nil {
			t.Fatal(err)
		}
		return ex.StreamWithContext(ctx, o)
	}
	var out, errs bytes.Buffer
	err := stream("/exec/ns/p/c?command=say&command=it&input=1&output=1&error=1", remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs})
	var exit clientexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 42 || out.String() != "say it in id-1: hello" || errs.String() != "oops" {
		t.Errorf("%v %q %q", err, out.String(), errs.String())
	}
	out.Reset()
	if err := stream("/exec/ns/p/c?command=sh&output=1&tty=1&input=1", remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{}}); err != nil || out.String() != "80x24" {
		t.Errorf("%v %q", err, out.String())
	}
	out.Reset()
	if err := stream("/attach/ns/p/c?stdin=true&stdout=true", remotecommand.StreamOptions{Stdin: strings.NewReader("echo"), Stdout: &out}); err != nil || out.String() != "echo" {
		t.Errorf("%v %q", err, out.String())
	}
	if err := stream("/exec/ns/p/waiting?command=x&output=1", remotecommand.StreamOptions{Stdout: &out}); err == nil || !strings.Contains(err.Error(), `container not found ("waiting")`) {
		t.Errorf("exec in a container that does not run: %v", err)
	}

	tr, up, err := spdy.RoundTripperFor(rc)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(base + "/portForward/ns/p")
	stop, ready := make(chan struct{}), make(chan struct{})
	var said bytes.Buffer
	fw, err := portforward.New(spdy.NewDialer(up, &http.Client{Transport: tr}, "POST", u), []string{"0:80"}, stop, ready, io.Discard, &said)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fw.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := fw.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "ping")
	if b, err := io.ReadAll(conn); err != nil || string(b) != "PING" {
		t.Errorf("%q %v", b, err)
	}
	conn.Close()
	close(stop)
	<-done
}

type oneSize struct{ done bool }

func (o *oneSize) Next() *remotecommand.TerminalSize {
	if o.done {
		return nil
	}
	o.done = true
	return &remotecommand.TerminalSize{Width: 80, Height: 24}
}

func TestFigures(t *testing.T) {
	base, _, cfg, _ := serve(t)
	for path, want := range map[string][]string{
		"/metrics":          {"kubelet_running_pods 1\n", `kubelet_running_containers{container_state="running"} 1`},
		"/metrics/resource": {`container_cpu_usage_seconds_total{container="c",namespace="ns",pod="p"} 1.5 `, `pod_memory_working_set_bytes{namespace="ns",pod="p"} 1.048576e+06 `, "node_memory_working_set_bytes "},
		"/metrics/cadvisor": {`container_cpu_usage_seconds_total{container="c",cpu="total",id="",image="",name="id-1",namespace="ns",pod="p"} 1.5`, "machine_memory_bytes ", `container_memory_working_set_bytes{container="",id="/",`},
		"/metrics/probes":   {},
		"/stats/summary":    {`"nodeName":"n1"`, `"usageCoreNanoSeconds":2500000000`, `"name":"c"`},
		"/stats/summary?only_cpu_and_memory=true": {`"usageNanoCores":0`},
		"/pods": {`"kind":"PodList"`, `"name":"p"`},
	} {
		code, body := get(t, cfg, base+path)
		if code != 200 {
			t.Errorf("%s: %d", path, code)
		}
		for _, w := range want {
			if code != 200 || !strings.Contains(body, w) {
				t.Errorf("%s: %d, no %q in %s", path, code, w, body)
			}
		}
	}
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func pemKey(t *testing.T, c tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
