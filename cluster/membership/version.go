package membership

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// maxAgentBehind is how many minor versions an agent may be older than the
// newest server.
const maxAgentBehind = 3

// minor reads MAJOR.MINOR of a version.
func minor(version string) (major, minor int, err error) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) == 3 {
		if major, err = strconv.Atoi(parts[0]); err == nil {
			if minor, err = strconv.Atoi(parts[1]); err == nil {
				return major, minor, nil
			}
		}
	}
	return 0, 0, fmt.Errorf("%q is no version, want MAJOR.MINOR.PATCH", version)
}

// checkVersion refuses a host whose version is too far from those of the
// servers: servers may be one minor version apart, agents up to three behind and
// never ahead of any server.
func checkVersion(role Role, version string, servers []string) error {
	major, mine, err := minor(version)
	for _, other := range servers {
		if other == version {
			continue
		}
		if err != nil {
			return refuse(http.StatusBadRequest, "the version of this host: %v; the cluster has %s", err, other)
		}
		otherMajor, theirs, err := minor(other)
		if err != nil {
			return refuse(http.StatusConflict, "the version of a server: %v; this host has %s", err, version)
		}
		behind := theirs - mine
		switch {
		case major != otherMajor:
			return refuse(http.StatusConflict, "this host runs skiff %s and a server of the cluster %s: install skiff %s here", version, other, other)
		case role.Votes() && (behind > 1 || behind < -1):
			return refuse(http.StatusConflict, "this host runs skiff %s and a server of the cluster %s: servers may be one minor version apart, install skiff %s here", version, other, other)
		case !role.Votes() && behind < 0:
			return refuse(http.StatusConflict, "this host runs skiff %s, newer than a server of the cluster with %s: upgrade the servers first, or install skiff %s here", version, other, other)
		case !role.Votes() && behind > maxAgentBehind:
			return refuse(http.StatusConflict, "this host runs skiff %s and a server of the cluster %s: agents may be %d minor versions behind, install skiff %s here", version, other, maxAgentBehind, other)
		}
	}
	return nil
}
