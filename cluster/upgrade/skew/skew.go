// Package skew says which versions of skiff work together. Joins, starts and
// roll-outs are refused by the same rules, with the order that works:
//
//   - servers are one minor version apart at most;
//   - agents are never ahead of a server, and up to three minor versions behind;
//   - a server goes from one minor version to the next, without skipping any;
//   - nobody goes below the feature level of the cluster (fsm.CheckLevel).
//
// Limits: a major version is another program, with which nothing works. Of a
// patch nothing depends, and of what follows it neither.
package skew

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxAgentBehind is how many minor versions an agent may be older than a server.
const MaxAgentBehind = 3

// Version is what the rules look at.
type Version struct{ Major, Minor int }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Parse reads MAJOR.MINOR.PATCH, whatever follows it, with or without a v before.
func Parse(version string) (Version, error) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) == 3 {
		major, err := strconv.ParseUint(parts[0], 10, 16)
		minor, err2 := strconv.ParseUint(parts[1], 10, 16)
		if err == nil && err2 == nil && parts[2] != "" && parts[2][0] >= '0' && parts[2][0] <= '9' {
			return Version{int(major), int(minor)}, nil
		}
	}
	return Version{}, fmt.Errorf("%q is no version, want MAJOR.MINOR.PATCH", version)
}

// Member is one member of a cluster.
type Member struct {
	Name    string
	Server  bool // or witness
	Version string
}

// Join says why a member can't work beside others: a host that joins, or one
// that starts again. Others without a version, and of the same name, do not
// count.
func Join(m Member, others []Member) error {
	mine, bad := Parse(m.Version)
	for _, o := range others {
		if o.Version == m.Version || o.Version == "" || o.Name != "" && o.Name == m.Name || !m.Server && !o.Server {
			continue
		}
		if bad != nil {
			return fmt.Errorf("the version of this host: %w; the cluster has %s", bad, o.Version)
		}
		theirs, err := Parse(o.Version)
		if err != nil {
			return fmt.Errorf("the version of %s: %w; this host has %s", o.who(), err, m.Version)
		}
		if err := beside(m, o, mine, theirs); err != nil {
			return err
		}
	}
	return nil
}

// beside compares two members of which one at least is a server.
func beside(m, o Member, mine, theirs Version) error {
	ahead := mine.Minor - theirs.Minor
	says := fmt.Sprintf("this host runs skiff %s and %s %s", m.Version, o.who(), o.Version)
	switch {
	case mine.Major != theirs.Major:
		return fmt.Errorf("%s: install skiff %s here", says, o.Version)
	case m.Server && o.Server && (ahead > 1 || ahead < -1):
		return fmt.Errorf("%s: servers may be one minor version apart, install skiff %s here", says, o.Version)
	case !m.Server && ahead > 0:
		return fmt.Errorf("%s, an older one: upgrade the servers first (skiff upgrade apply), or install skiff %s here", says, o.Version)
	case !m.Server && ahead < -MaxAgentBehind:
		return fmt.Errorf("%s: agents may be %d minor versions behind, install skiff %s here", says, MaxAgentBehind, o.Version)
	case m.Server && !o.Server && ahead < 0:
		return fmt.Errorf("%s, a newer one: agents may not be ahead of a server, install skiff %s here", says, o.Version)
	case m.Server && !o.Server && ahead > MaxAgentBehind:
		return fmt.Errorf("%s: agents may be %d minor versions behind, upgrade that one first", says, MaxAgentBehind)
	}
	return nil
}

func (m Member) who() string {
	kind := "agent"
	if m.Server {
		kind = "server"
	}
	if m.Name == "" {
		return "a " + kind + " of the cluster"
	}
	return kind + " " + m.Name
}

// Step says why a host may not go from one version to another by a restart.
// Versions that can't be read are those of development: they may.
func Step(server bool, from, to string) error {
	was, err := Parse(from)
	is, err2 := Parse(to)
	if err != nil || err2 != nil || from == to {
		return nil
	}
	steps := is.Minor - was.Minor
	switch {
	case was.Major != is.Major:
		return fmt.Errorf("this host ran skiff %s, and this is skiff %s: there is no way from one major version to another", from, to)
	case server && steps > 1:
		return fmt.Errorf("this host ran skiff %s, and this is skiff %s: a server skips no minor version, run %d.%d on every server first", from, to, was.Major, was.Minor+1)
	case server && steps < -1:
		return fmt.Errorf("this host ran skiff %s, and this is skiff %s: a server goes back by one minor version at most, run %d.%d first", from, to, was.Major, was.Minor-1)
	}
	return nil
}

// Upgrade says why a cluster can't go to a version, a line each.
func Upgrade(members []Member, to string) (why []string) {
	target, err := Parse(to)
	if err != nil {
		return []string{fmt.Sprintf("the target: %v", err)}
	}
	var oldest, newest *Version // of the servers
	for _, m := range members {
		v, err := Parse(m.Version)
		if err != nil && m.Version != to {
			if m.Version != "" {
				why = append(why, fmt.Sprintf("%s: %v", m.who(), err))
			}
			continue
		}
		steps := target.Minor - v.Minor
		switch {
		case v.Major != target.Major:
			why = append(why, fmt.Sprintf("%s runs %s: there is no way from one major version to another", m.who(), m.Version))
		case m.Server && steps > 1:
			why = append(why, fmt.Sprintf("%s runs %s: servers skip no minor version, upgrade all of them to %d.%d first", m.who(), m.Version, v.Major, v.Minor+1))
		case steps < 0:
			why = append(why, fmt.Sprintf("%s runs %s, a newer version: to go back there is skiff upgrade rollback", m.who(), m.Version))
		}
		if m.Server {
			if oldest == nil || v.Minor < oldest.Minor {
				oldest = &v
			}
			if newest == nil || v.Minor > newest.Minor {
				newest = &v
			}
		}
	}
	if oldest != nil && newest.Minor-oldest.Minor > 1 {
		why = append(why, fmt.Sprintf("servers run %s to %s, and may be one minor version apart: bring the oldest to %d.%d first", oldest, newest, newest.Major, newest.Minor-1))
	}
	for _, m := range members { // servers come first, so they meet the agents as these are now
		if v, err := Parse(m.Version); err == nil && !m.Server && v.Major == target.Major && target.Minor-v.Minor > MaxAgentBehind {
			why = append(why, fmt.Sprintf("%s runs %s: agents may be %d minor versions behind servers, and servers are upgraded first; upgrade that one to %d.%d first", m.who(), m.Version, MaxAgentBehind, v.Major, target.Minor-1))
		}
	}
	return why
}
