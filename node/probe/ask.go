package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const maxBody = 10 << 10

// ask probes once.
func ask(ctx context.Context, c Config) (ok bool, message string) {
	timeout := seconds(c.Probe.TimeoutSeconds, 1)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch h := c.Probe.ProbeHandler; {
	case h.Exec != nil:
		return askExec(ctx, c.Exec, h.Exec.Command, timeout)
	case h.HTTPGet != nil:
		return HTTPGet(ctx, h.HTTPGet, c.Host, c.Ports)
	case h.TCPSocket != nil:
		port, err := Port(h.TCPSocket.Port, c.Ports)
		if err != nil {
			return false, err.Error()
		}
		host := h.TCPSocket.Host
		if host == "" {
			host = c.Host
		}
		return askTCP(ctx, host, port)
	case h.GRPC != nil:
		service := ""
		if h.GRPC.Service != nil {
			service = *h.GRPC.Service
		}
		return askGRPC(ctx, net.JoinHostPort(c.Host, strconv.Itoa(int(h.GRPC.Port))), service, timeout)
	}
	return false, "the probe has no handler"
}

func askExec(ctx context.Context, run ExecFunc, args []string, timeout time.Duration) (bool, string) {
	out, code, err := run(ctx, args)
	out = strings.TrimSpace(out)
	if ctx.Err() == context.DeadlineExceeded {
		return false, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(args, " "), timeout)
	}
	if err != nil {
		return false, err.Error()
	}
	return code == 0, out
}

func askTCP(ctx context.Context, host string, port int) (bool, string) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return false, err.Error()
	}
	_ = conn.Close()
	return true, ""
}

// Port resolves a port that may be given by name.
func Port(p intstr.IntOrString, ports []v1.ContainerPort) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		found := false
		for _, cp := range ports {
			if cp.Name == p.StrVal {
				n, found = int(cp.ContainerPort), true
			}
		}
		if !found {
			var err error
			if n, err = strconv.Atoi(p.StrVal); err != nil {
				return 0, fmt.Errorf("couldn't find port: %s", p.String())
			}
		}
	}
	if n <= 0 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", n)
	}
	return n, nil
}

// errElsewhere stops a redirect that leaves the host: such an answer passes.
var errElsewhere = errors.New("redirect to another host")

// HTTPGet asks once; any status from 200 to 399 passes. Certificates are not
// checked: the container's identity is not the question.
func HTTPGet(ctx context.Context, h *v1.HTTPGetAction, podIP string, ports []v1.ContainerPort) (bool, string) {
	port, err := Port(h.Port, ports)
	if err != nil {
		return false, err.Error()
	}
	host := h.Host
	if host == "" {
		host = podIP
	}
	scheme := "http"
	if h.Scheme != "" {
		scheme = strings.ToLower(string(h.Scheme))
	}
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path}
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return false, err.Error()
	}
	for _, kv := range h.HTTPHeaders {
		if strings.EqualFold(kv.Name, "Host") {
			req.Host = kv.Value
			continue
		}
		req.Header.Add(kv.Name, kv.Value)
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "kube-probe/1.37")
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "*/*")
	}
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true, Proxy: nil, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Hostname() != via[0].URL.Hostname() {
			return errElsewhere
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		if errors.Is(err, errElsewhere) {
			return true, ""
		}
		return false, err.Error()
	}
	defer resp.Body.Close()
	_, _ = io.Copy(&bytes.Buffer{}, io.LimitReader(resp.Body, maxBody))
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return true, ""
	}
	return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)
}

func askGRPC(ctx context.Context, addr, service string, timeout time.Duration) (bool, string) {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/1.37"), grpc.WithNoProxy())
	if err != nil {
		return false, fmt.Sprintf("error: failed to connect service at %q: %v", addr, err)
	}
	defer conn.Close()
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		switch status.Code(err) {
		case codes.Unimplemented:
			return false, fmt.Sprintf("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message())
		case codes.DeadlineExceeded:
			return false, fmt.Sprintf("timeout: health rpc did not complete within %v", timeout)
		case codes.Unavailable:
			return false, fmt.Sprintf("timeout: failed to connect service %q within %v: %s", addr, timeout, status.Convert(err).Message())
		}
		return false, fmt.Sprintf("error: health rpc probe failed: %v", err)
	}
	if resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return false, fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus().String())
	}
	return true, ""
}
