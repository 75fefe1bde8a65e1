package probe

import (
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

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-base/version"
)

const maxBody = 10 << 10

// transport serves all probes and hooks: a connection for each question, no
// proxy, and no look at certificates, since the container's identity is not
// the question. It carries no credentials.
var transport = &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true, ForceAttemptHTTP2: true,
	TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, WriteBufferSize: 1 << 10, ReadBufferSize: 1 << 10}

// UserAgent is how skiff names itself to containers; purpose is "probe" or
// "lifecycle".
func UserAgent(purpose string) string {
	v := version.Get()
	return "kube-" + purpose + "/" + v.Major + "." + v.Minor
}

// request is what an httpGet action asks for.
func request(ctx context.Context, h *v1.HTTPGetAction, podIP string, ports []v1.ContainerPort, purpose string) (*http.Request, error) {
	port, err := Port(h.Port, ports)
	if err != nil {
		return nil, err
	}
	host := h.Host
	if host == "" {
		host = podIP
	}
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path}
	}
	u.Scheme, u.Host = "http", net.JoinHostPort(host, strconv.Itoa(port))
	if h.Scheme != "" {
		u.Scheme = strings.ToLower(string(h.Scheme))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, kv := range h.HTTPHeaders {
		req.Header.Add(kv.Name, kv.Value)
	}
	if _, given := req.Header["User-Agent"]; !given {
		req.Header.Set("User-Agent", UserAgent(purpose))
	}
	if v, given := req.Header["Accept"]; !given {
		req.Header.Set("Accept", "*/*")
	} else if v[0] == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

// stayHere ends a redirect that leaves the host; what was answered then is the
// answer.
func stayHere(r *http.Request, via []*http.Request) error {
	if r.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

func askHTTP(ctx context.Context, h *v1.HTTPGetAction, podIP string, ports []v1.ContainerPort, timeout time.Duration) (Result, string) {
	req, err := request(ctx, h, podIP, ports, "probe")
	if err != nil {
		return Unknown, err.Error()
	}
	client := http.Client{Transport: transport, CheckRedirect: stayHere, Timeout: timeout}
	resp, err := client.Do(req)
	if err != nil {
		return Failed, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	switch {
	case err != nil:
		return Unknown, err.Error()
	case resp.StatusCode < 200 || resp.StatusCode >= 400:
		return Failed, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)
	case resp.StatusCode >= 300:
		return Warned, "Probe terminated redirects, Response body: " + string(body)
	}
	return Passed, ""
}

// HTTPHook runs the httpGet action of a lifecycle hook. Any answer is a
// success: only that the container was told matters. Where HTTPS was asked for
// and plain HTTP is spoken, it is told by HTTP, and fellBack is the address.
func HTTPHook(ctx context.Context, h *v1.HTTPGetAction, podIP string, ports []v1.ContainerPort) (fellBack string, err error) {
	req, err := request(ctx, h, podIP, ports, "lifecycle")
	if err != nil {
		return "", err
	}
	err = tell(req)
	if err == nil || !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return "", err
	}
	plain := req.Clone(ctx)
	plain.URL.Scheme = "http"
	plain.Header.Del("Authorization")
	if tell(plain) == nil {
		return req.URL.Host, nil
	}
	return "", err
}

func tell(req *http.Request) error {
	client := http.Client{Transport: transport, CheckRedirect: stayHere}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxBody)
	return resp.Body.Close()
}
