package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/urfave/cli/v2"
	componentversion "k8s.io/component-base/version"

	"github.com/skiff-sh/skiff/fsm"
)

// version of skiff itself; the build sets it.
var version = "0.1.0-dev"

type versionInfo struct {
	Skiff      string `json:"skiff"`
	Kubernetes string `json:"kubernetes"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
	// Feature levels of a cluster that this program works at.
	MinLevel int `json:"minLevel"`
	MaxLevel int `json:"maxLevel"`
}

func currentVersion() versionInfo {
	return versionInfo{version, componentversion.Get().GitVersion, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, fsm.MinLevel, fsm.MaxLevel}
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "show the version of skiff and of the Kubernetes API it serves",
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			asJSON, err := wantJSON(c)
			if err != nil {
				return err
			}
			v := currentVersion()
			if asJSON {
				return json.NewEncoder(c.App.Writer).Encode(v)
			}
			_, err = fmt.Fprintf(c.App.Writer, "skiff %s (Kubernetes %s, %s, %s)\n", v.Skiff, v.Kubernetes, v.Go, v.Platform)
			return err
		},
	}
}
