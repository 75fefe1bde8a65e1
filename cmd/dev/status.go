package dev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// NodeStatus is what is known of a node without asking it.
type NodeStatus struct {
	Name    string `json:"name"`
	Role    Role   `json:"role"`
	Address string `json:"address"`
	// Pods says whether the node runs any.
	Pods bool `json:"pods"`
	// State is running, paused, stopped (pods may run without skiff) or off.
	State string `json:"state"`
	PID   int    `json:"pid,omitempty"`
	// Disk is ok, stalled, shared, or unknown where the node is off.
	Disk     string `json:"disk"`
	DiskUsed int    `json:"diskUsedPercent"`
	DataDir  string `json:"dataDir"` // as seen in the node
	Log      string `json:"log"`
}

// Status of a cluster.
type Status struct {
	Dir    string       `json:"dir"`
	Subnet string       `json:"subnet"`
	Nodes  []NodeStatus `json:"nodes"`
	Cuts   []Cut        `json:"cuts"`
}

// Status says how the nodes' processes, disks and links are.
func (c *Cluster) Status() (Status, error) {
	s, err := c.p.load()
	if err != nil {
		return Status{}, err
	}
	out := Status{Dir: c.p.dir, Subnet: s.Subnet.String(), Cuts: append([]Cut{}, s.Cuts...)}
	for _, n := range s.Nodes {
		st := NodeStatus{Name: n.Name, Role: n.Role, Address: n.Addr.String(), Pods: s.runsPods(n), State: "off", Disk: "unknown",
			DataDir: c.p.nodeFile(n.Name, "data"), Log: c.p.nodeFile(n.Name, "log")}
		proc, err := c.p.skiff(n.Name)
		if err != nil {
			return out, err
		}
		if c.p.prepared(n.Name) {
			st.State = "stopped"
			st.Disk, st.DiskUsed = c.diskOf(s, n.Name)
		}
		switch proc.state() {
		case 0:
		case 'T', 't':
			st.State, st.PID = "paused", proc.PID
		default:
			st.State, st.PID = "running", proc.PID
		}
		out.Nodes = append(out.Nodes, st)
	}
	return out, nil
}

func (c *Cluster) diskOf(s *state, node string) (string, int) {
	var fs unix.Statfs_t
	err := c.p.inside(node, []string{"mnt"}, func() error { return unix.Statfs(c.p.nodeFile(node, "data"), &fs) })
	if err != nil || fs.Blocks == 0 {
		return fmt.Sprint(err), 0
	}
	used := int(100 * (fs.Blocks - fs.Bavail) / fs.Blocks)
	if s.PlainDisks {
		return "shared", used
	}
	if _, err := os.Stat(c.p.nodeFile(node, "stalled")); err == nil || !errors.Is(err, os.ErrNotExist) {
		return "stalled", used
	}
	return "ok", used
}
