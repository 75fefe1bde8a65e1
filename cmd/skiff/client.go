package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-sh/skiff/cluster"
	"github.com/skiff-sh/skiff/cluster/servers"
)

// clientFlags say which server to talk to. The TLS flags have the names that
// etcdctl's users know.
func clientFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		dataDirFlag(),
		&cli.StringFlag{Name: "kubeconfig", Usage: "kubeconfig of an administrator (default: KUBECONFIG, then DATA-DIR/admin.kubeconfig)", EnvVars: env("kubeconfig")},
		&cli.StringFlag{Name: "endpoints", Usage: "servers as https://HOST:PORT, separated by commas; the first that answers is used", EnvVars: env("endpoints")},
		&cli.StringFlag{Name: "cacert", Usage: "CA certificate of the cluster, with --endpoints", EnvVars: env("cacert")},
		&cli.StringFlag{Name: "cert", Usage: "client certificate, with --endpoints", EnvVars: env("cert")},
		&cli.StringFlag{Name: "key", Usage: "key of the client certificate, with --endpoints", EnvVars: env("key")},
	}, more...)
}

// apiClient reaches the cluster as an administrator: a client whose requests to
// servers.Host go to a server that works.
func apiClient(c *cli.Context) (*http.Client, error) {
	config, list, err := clientConfig(c)
	if err != nil {
		return nil, err
	}
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, usagef("%v", err)
	}
	if tlsConfig == nil {
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	transport := servers.Transport(tlsConfig)
	transport.Proxy = http.ProxyFromEnvironment
	rt, err := rest.HTTPWrappersForConfig(config, transport)
	if err != nil {
		return nil, usagef("%v", err)
	}
	return &http.Client{Transport: servers.New("", list...).Wrap(rt)}, nil
}

// clientConfig gives the credentials and the servers to try.
func clientConfig(c *cli.Context) (*rest.Config, []servers.Server, error) {
	files := rest.TLSClientConfig{CAFile: c.String("cacert"), CertFile: c.String("cert"), KeyFile: c.String("key")}
	if c.String("endpoints") == "" {
		if files.CAFile != "" || files.CertFile != "" || files.KeyFile != "" {
			return nil, nil, usagef("--cacert, --cert and --key go with --endpoints")
		}
		return kubeconfig(c)
	}
	for flag, path := range map[string]string{"cacert": files.CAFile, "cert": files.CertFile, "key": files.KeyFile} {
		if path == "" {
			return nil, nil, usagef("--endpoints needs --%s", flag)
		}
		if _, err := os.Stat(path); err != nil {
			return nil, nil, usagef("--%s: %v", flag, err)
		}
	}
	var list []servers.Server
	for e := range strings.SplitSeq(c.String("endpoints"), ",") {
		address, err := serverAddress(strings.TrimSpace(e))
		if err != nil {
			return nil, nil, usagef("--endpoints %q: %v", e, err)
		}
		list = append(list, servers.Server{Address: address})
	}
	return &rest.Config{TLSClientConfig: files}, list, nil
}

// serverAddress gives HOST:PORT of a URL or of a host with or without a port.
func serverAddress(s string) (string, error) {
	host, isURL := strings.CutPrefix(s, "https://")
	switch host = strings.TrimSuffix(host, "/"); {
	case !isURL && strings.Contains(s, "://"):
		return "", errors.New("want https://HOST:PORT")
	case host == "" || strings.ContainsAny(host, "/ @"):
		return "", errors.New("want HOST or HOST:PORT")
	}
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host, nil
	}
	port := strconv.Itoa(cluster.DefaultPort)
	if isURL {
		port = "443"
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port), nil
}

func kubeconfig(c *cli.Context) (*rest.Config, []servers.Server, error) {
	path := c.String("kubeconfig")
	rules := &clientcmd.ClientConfigLoadingRules{}
	if path == "" {
		path = os.Getenv("KUBECONFIG")
		if list := filepath.SplitList(path); len(list) > 1 {
			rules.Precedence = list
		}
	}
	if path == "" {
		path = filepath.Join(c.String("data-dir"), "admin.kubeconfig")
		if _, err := os.Stat(path); err != nil {
			return nil, nil, fmt.Errorf("no server has run here (%w): name its data directory with --data-dir, or a kubeconfig with --kubeconfig", err)
		}
	}
	if rules.Precedence == nil {
		rules.ExplicitPath = path
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	var list []servers.Server
	if context := raw.Contexts[raw.CurrentContext]; context != nil {
		list = servers.OfCluster(raw.Clusters[context.Cluster])
	}
	if len(list) == 0 {
		address, err := serverAddress(config.Host)
		if err != nil {
			return nil, nil, fmt.Errorf("kubeconfig %s: server %q: %w", path, config.Host, err)
		}
		list = []servers.Server{{Address: address}}
	}
	return config, list, nil
}

// getSkiff fetches one of skiff's own paths. The caller closes the body.
func getSkiff(c *cli.Context, path string) (*http.Response, error) {
	return callSkiff(c, http.MethodGet, path, nil)
}

// callSkiff sends a request for one of skiff's own paths, with in as JSON unless
// it is nil. Answers other than 2xx are errors. The caller closes the body.
func callSkiff(c *cli.Context, method, path string, in any) (*http.Response, error) {
	client, err := apiClient(c)
	if err != nil {
		return nil, err
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(c.Context, method, servers.Host+path, body)
	if err != nil {
		return nil, usagef("%v", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		// The alert is lost where what was sent crosses it.
		return nil, fmt.Errorf("no server answers: %w; it may not know the CA of the client certificate", err)
	}
	if err != nil {
		return nil, fmt.Errorf("no server answers: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, answerError(resp)
	}
	return resp, nil
}

func answerError(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("the server answered %s: %w", resp.Status, err)
	}
	text := strings.TrimSpace(string(b))
	var status metav1.Status
	if json.Unmarshal(b, &status) == nil && status.Message != "" {
		text = status.Message
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("the server refused: these credentials are not an administrator's (%s)", resp.Status)
	case http.StatusNotFound:
		if text == "" || strings.HasPrefix(text, "404 ") || strings.Contains(text, "could not find the requested resource") {
			return fmt.Errorf("the server is no skiff server, or an older one (%s)", resp.Status)
		}
	}
	return fmt.Errorf("the server answered %s: %s", resp.Status, text)
}
