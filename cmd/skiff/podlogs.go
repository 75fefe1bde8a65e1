package main

import (
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
)

// defaultPodLogDir is where log collectors look, which mount the host's /var/log.
const defaultPodLogDir = "/var/log/pods"

func podLogFlag() cli.Flag {
	return stringFlag("pod-log-dir", "folder of the logs of pods; beside one that is called pods, links to them are kept in containers (default: "+defaultPodLogDir+
		" with the default --data-dir, else DATA-DIR/node/logs)", "")
}

// parsePodLogDir returns an absolute path, or "" for the folder in the data directory.
func parsePodLogDir(dir, dataDir string) (string, error) {
	data, err := filepath.Abs(dataDir)
	if err != nil {
		return "", err
	}
	if dir == "" {
		if data == defaultDataDir {
			return defaultPodLogDir, nil
		}
		return "", nil
	}
	abs, err := filepath.Abs(dir)
	switch {
	case err != nil:
		return "", err
	case abs == filepath.Join(data, "node", "logs"):
		return "", nil
	case strings.HasPrefix(abs+"/", data+"/"):
		return "", usagef("--pod-log-dir %q: is in the data directory, where only %s is for logs", dir, filepath.Join(data, "node", "logs"))
	case abs == "/" || strings.HasPrefix(data+"/", abs+"/"):
		return "", usagef("--pod-log-dir %q: want a folder that does not hold the data directory %s", dir, data)
	}
	return abs, nil
}
