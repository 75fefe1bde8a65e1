package probe

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ask probes once. The message says what failed, warned or could not be asked.
func ask(ctx context.Context, c Config) (Result, string) {
	timeout := seconds(c.Probe.TimeoutSeconds, 1)
	switch h := c.Probe.ProbeHandler; {
	case h.Exec != nil:
		return askExec(ctx, c.Exec, h.Exec.Command, timeout)
	case h.HTTPGet != nil:
		return askHTTP(ctx, h.HTTPGet, c.Host, c.Ports, timeout)
	case h.TCPSocket != nil:
		port, err := Port(h.TCPSocket.Port, c.Ports)
		if err != nil {
			return Unknown, err.Error()
		}
		host := h.TCPSocket.Host
		if host == "" {
			host = c.Host
		}
		return askTCP(ctx, net.JoinHostPort(host, strconv.Itoa(port)), timeout)
	case h.GRPC != nil:
		service := ""
		if h.GRPC.Service != nil {
			service = *h.GRPC.Service
		}
		return askGRPC(ctx, net.JoinHostPort(c.Host, strconv.Itoa(int(h.GRPC.Port))), service, timeout)
	}
	return Unknown, "the probe has no handler"
}

func askExec(ctx context.Context, run ExecFunc, args []string, timeout time.Duration) (Result, string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, code, err := run(ctx, args)
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		return Failed, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(args, " "), timeout)
	case err != nil:
		return Unknown, err.Error()
	case code != 0:
		return Failed, strings.TrimSpace(out)
	}
	return Passed, ""
}

// dialer sets no SO_LINGER as kubelet's does: measured, just as many
// connections stay in TIME-WAIT, each close waits, and it costs half as much
// again.
var dialer = net.Dialer{KeepAlive: -1}

func askTCP(ctx context.Context, addr string, timeout time.Duration) (Result, string) {
	d := dialer
	d.Timeout = timeout
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return Failed, err.Error()
	}
	_ = conn.Close()
	return Passed, ""
}

// Port resolves a port that may be given by name.
func Port(p intstr.IntOrString, ports []v1.ContainerPort) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		found := false
		for _, cp := range ports {
			if cp.Name == p.StrVal {
				n, found = int(cp.ContainerPort), true
				break
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
