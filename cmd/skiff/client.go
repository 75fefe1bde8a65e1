package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
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

// clientConfigs gives one configuration for each server to try.
func clientConfigs(c *cli.Context) ([]*rest.Config, error) {
	tls := rest.TLSClientConfig{CAFile: c.String("cacert"), CertFile: c.String("cert"), KeyFile: c.String("key")}
	if c.String("endpoints") == "" {
		if tls.CAFile != "" || tls.CertFile != "" || tls.KeyFile != "" {
			return nil, usagef("--cacert, --cert and --key go with --endpoints")
		}
		cfg, err := kubeconfig(c)
		if err != nil {
			return nil, err
		}
		return []*rest.Config{cfg}, nil
	}
	for flag, path := range map[string]string{"cacert": tls.CAFile, "cert": tls.CertFile, "key": tls.KeyFile} {
		if path == "" {
			return nil, usagef("--endpoints needs --%s", flag)
		}
		if _, err := os.Stat(path); err != nil {
			return nil, usagef("--%s: %v", flag, err)
		}
	}
	var out []*rest.Config
	for e := range strings.SplitSeq(c.String("endpoints"), ",") {
		if e = strings.TrimSpace(e); !strings.Contains(e, "://") {
			e = "https://" + e
		}
		out = append(out, &rest.Config{Host: e, TLSClientConfig: tls})
	}
	return out, nil
}

func kubeconfig(c *cli.Context) (*rest.Config, error) {
	path := c.String("kubeconfig")
	if path == "" {
		path = os.Getenv("KUBECONFIG")
	}
	if path == "" {
		path = filepath.Join(c.String("data-dir"), "admin.kubeconfig")
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("no server has run here (%w): name its data directory with --data-dir, or a kubeconfig with --kubeconfig", err)
		}
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return cfg, nil
}

// getSkiff fetches one of skiff's own paths from the first server that
// answers. The caller closes the body.
func getSkiff(c *cli.Context, path string) (*http.Response, error) {
	configs, err := clientConfigs(c)
	if err != nil {
		return nil, err
	}
	var last error
	for _, cfg := range configs {
		client, err := rest.HTTPClientFor(cfg)
		if err != nil {
			return nil, usagef("%v", err)
		}
		req, err := http.NewRequestWithContext(c.Context, http.MethodGet, strings.TrimSuffix(cfg.Host, "/")+path, nil)
		if err != nil {
			return nil, usagef("%v", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			last = fmt.Errorf("server %s does not answer: %w", cfg.Host, err)
			continue
		}
		if resp.StatusCode != http.StatusOK {
			last = answerError(cfg.Host, resp)
			resp.Body.Close()
			continue
		}
		return resp, nil
	}
	return nil, last
}

func answerError(host string, resp *http.Response) error {
	b := make([]byte, 300)
	n, _ := resp.Body.Read(b)
	text := strings.TrimSpace(string(b[:n]))
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("server %s refused: these credentials are not an administrator's (%s)", host, resp.Status)
	case http.StatusNotFound:
		return fmt.Errorf("%s is no skiff server, or an older one (%s)", host, resp.Status)
	}
	return fmt.Errorf("server %s answered %s: %s", host, resp.Status, text)
}
