package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// KUBECONFIG may be a list of files, as it may be for kubectl.
func TestKubeconfigList(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for name, text := range map[string]string{
		"clusters": `{"clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443"}}], "users": [{"name": "u", "user": {}}]}`,
		"contexts": `{"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}], "current-context": "x"}`,
	} {
		paths = append(paths, filepath.Join(dir, name))
		if err := os.WriteFile(paths[len(paths)-1], []byte(`{"apiVersion": "v1", "kind": "Config", `+text[1:]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBECONFIG", paths[0]+string(filepath.ListSeparator)+paths[1])
	cmd := &cli.Command{Name: "x", Flags: clientFlags(), Action: func(c *cli.Context) error {
		_, list, err := clientConfig(c)
		if err != nil || len(list) != 1 || list[0].Address != "10.0.0.1:6443" {
			t.Errorf("servers %v, %v", list, err)
		}
		return nil
	}}
	if err := (&cli.App{Commands: []*cli.Command{cmd}}).Run([]string{"skiff", "x"}); err != nil {
		t.Error(err)
	}
}

func TestNamesKubeconfig(t *testing.T) {
	for line, want := range map[string]bool{
		"get pods":                             false,
		"--kubeconfig x get pods":              true,
		"get pods --kubeconfig=x":              true,
		"exec p -- kubectl --kubeconfig x get": false,
		"--kubeconfig x exec p -- kubectl get": true,
	} {
		if got := namesKubeconfig(strings.Fields(line)); got != want {
			t.Errorf("%s: %t", line, got)
		}
	}
}
