package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	componentcli "k8s.io/component-base/cli"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
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
	return genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
		WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(stdStreams())
}

func namesKubeconfig(args []string) bool {
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
