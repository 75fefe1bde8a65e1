package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	componentcli "k8s.io/component-base/cli"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/skiff-sh/skiff/cluster/servers"
)

func kubectlCommand() *cli.Command {
	return &cli.Command{
		Name:            "kubectl",
		Aliases:         []string{"k"},
		Usage:           "the Kubernetes client, with this host's admin kubeconfig unless KUBECONFIG or --kubeconfig says otherwise",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			if code := runKubectl(c.Args().Slice()); code != 0 {
				return cli.Exit("", code) // kubectl has said why
			}
			return nil
		},
	}
}

// runKubectl is kubectl with args; it returns kubectl's exit code.
func runKubectl(args []string) int {
	if path := adminKubeconfig(); path != "" && os.Getenv("KUBECONFIG") == "" && !namesKubeconfig(args) {
		// kubectl itself and its plugins both read it from here.
		if err := os.Setenv("KUBECONFIG", path); err != nil {
			os.Stderr.WriteString("skiff: set KUBECONFIG: " + err.Error() + "\n")
			return exitFailed
		}
	}
	for name, value := range servers.Environment {
		if os.Getenv(name) == "" {
			if err := os.Setenv(name, value); err != nil {
				os.Stderr.WriteString("skiff: set " + name + ": " + err.Error() + "\n")
				return exitFailed
			}
		}
	}
	// kubectl reads os.Args to find plugins and for its usage texts.
	os.Args = append([]string{"kubectl"}, args...)
	cmd := kubectlcmd.NewDefaultKubectlCommandWithArgs(kubectlcmd.KubectlOptions{
		PluginHandler: kubectlcmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
		Arguments:     os.Args,
		ConfigFlags:   kubectlFlags(),
		IOStreams:     stdStreams(),
	})
	if err := componentcli.RunNoErrOutput(cmd); err != nil {
		cmdutil.CheckErr(err) // prints as kubectl does, and exits
		return exitFailed
	}
	return 0
}

func stdStreams() genericiooptions.IOStreams {
	return genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
}

// kubectlFlags are kubectl's own connection flags with its discovery limits.
func kubectlFlags() *genericclioptions.ConfigFlags {
	f := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
		WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(stdStreams())
	var once sync.Once
	var balancer *servers.Balancer
	return f.WithWrapConfigFn(func(c *rest.Config) *rest.Config {
		once.Do(func() { balancer = findServer(f, c) })
		if balancer == nil {
			return c
		}
		c.ServerName = servers.ServerName
		c.Host = "https://" + balancer.First()
		c.Wrap(balancer.Wrap)
		return c
	})
}

// findServer makes the Balancer for a kubeconfig of a whole cluster, with a
// server first that answers: commands such as exec have no other choice later.
// It gives nil for the kubeconfig of one server.
func findServer(f *genericclioptions.ConfigFlags, c *rest.Config) *servers.Balancer {
	given := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	raw, err := f.ToRawKubeConfigLoader().RawConfig()
	if err != nil || given(f.APIServer) != "" || given(f.TLSServerName) != "" {
		return nil
	}
	name := given(f.ClusterName)
	if name == "" {
		current := given(f.Context)
		if current == "" {
			current = raw.CurrentContext
		}
		if raw.Contexts[current] == nil {
			return nil
		}
		name = raw.Contexts[current].Cluster
	}
	list := servers.OfCluster(raw.Clusters[name])
	tlsConfig, err := rest.TLSConfigFor(c)
	if len(list) < 2 || err != nil || tlsConfig == nil {
		return nil
	}
	b := servers.New("", list...)
	// Without success the first request says what is wrong.
	_, _ = b.Pick(context.Background(), servers.Handshake(tlsConfig))
	return b
}

func namesKubeconfig(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i] // what follows is a command in a container
	}
	return slices.ContainsFunc(args, func(a string) bool { return a == "--kubeconfig" || strings.HasPrefix(a, "--kubeconfig=") })
}

// adminKubeconfig is the kubeconfig of the server on this host, if there is one
// that we may read.
func adminKubeconfig() string {
	dir := os.Getenv(env("data-dir")[0])
	if dir == "" {
		dir = defaultDataDir
	}
	path := filepath.Join(dir, "admin.kubeconfig")
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	f.Close()
	return path
}
