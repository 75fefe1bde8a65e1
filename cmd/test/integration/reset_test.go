//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/netproxy/netdump"
)

const resetSetup = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  sessionAffinity: ClientIP
  ports: [{port: 80, targetPort: 8080, nodePort: 30083}]
---
apiVersion: v1
kind: Pod
metadata: {name: everything, labels: {app: web}}
spec:
  shareProcessNamespace: true
  volumes:
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: disk, emptyDir: {}}
  containers:
  - name: web
    image: skiff.local/hello:v1
    ports: [{containerPort: 8080, hostPort: 8085}]
    volumeMounts: [{name: memory, mountPath: /memory}, {name: disk, mountPath: /disk}]
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  hostPID: true
  containers:
  - {name: box, image: "skiff.test/busybox:1.36", command: ["sleep", "100000"]}
---
`

// TestResetLeavesNothing: a reset takes away what skiff made, also in the middle
// of its work, and nothing that others made.
func TestResetLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s, err := newServer("skiff-reset", 8, filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server's last words:\n%s", s.log.tail(60))
		}
		if err := s.remove(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	// The name of a foreign mount may begin like that of ours.
	foreign := s.DataDir + "-foreign"
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("foreign", foreign, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(foreign, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if err := s.Host.Do(foreignNetwork); err != nil {
		t.Fatal(err)
	}
	before := inventory(t, s)

	for round := range 2 {
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		s.apply(t, resetSetup+deployment("web", 3))
		s.kubectl(t, "wait", "--for=condition=Ready", "pod/everything", "pod/host", "--timeout=240s")
		s.kubectl(t, "rollout", "status", "deployment/web", "--timeout=240s")
		eventually(t, 10*time.Second, func() error {
			_, err := visit("http://" + s.Host.Addr + ":30083/")
			return err
		})
		if during := inventory(t, s); len(during) < len(before)+30 {
			t.Fatalf("the inventory does not see a running server: %d lines, %d before", len(during), len(before))
		}
		if round == 1 { // killed while pods come and go
			s.kubectl(t, "scale", "deployment/web", "--replicas=12")
			s.kubectl(t, "delete", "pod", "everything", "--wait=false")
			time.Sleep(150 * time.Millisecond)
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			loseRecords(t, filepath.Join(s.stateDir(), "p"))
		}
		if err := s.Reset(t.Context()); err != nil {
			t.Error(err)
		}
		// The kernel takes some things away a moment after it was told to.
		eventually(t, 5*time.Second, func() error {
			after := inventory(t, s)
			var wrong []string
			for _, line := range after {
				if !slices.Contains(before, line) {
					wrong = append(wrong, "left behind: "+line)
				}
			}
			for _, line := range before {
				if !slices.Contains(after, line) {
					wrong = append(wrong, "removed though it is not skiff's: "+line)
				}
			}
			if len(wrong) > 0 {
				return fmt.Errorf("round %d:\n%s", round, strings.Join(wrong, "\n"))
			}
			return nil
		})
		for _, d := range []string{s.DataDir, s.stateDir()} {
			if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("round %d, %s is there: %v", round, d, err)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// loseRecords removes the files of one living shim, so that nobody knows it.
func loseRecords(t *testing.T, dir string) {
	t.Helper()
	shims, err := shimDirs(dir)
	if err != nil || len(shims) == 0 {
		t.Fatalf("%d shims below %s: %v", len(shims), dir, err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, shims[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, shims[0], e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// foreignNetwork makes what belongs to somebody else.
func foreignNetwork() error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "foreign0"}, PeerName: "foreign1"}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	addr, err := netlink.ParseAddr("10.77.0.1/24")
	if err != nil {
		return err
	}
	route, err := netlink.ParseIPNet("10.78.0.0/16")
	if err != nil {
		return err
	}
	rule := netlink.NewRule()
	rule.Priority, rule.Mark, rule.Table = 100, 77, 77
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	loAddr, err := netlink.ParseAddr("10.79.0.1/32")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(link, addr), netlink.AddrAdd(lo, loAddr), netlink.LinkSetUp(link)); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if err := errors.Join(netlink.RuleAdd(rule), netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: route})); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
		name := "foreign"
		if family == nftables.TableFamilyINet {
			name = "skiff" // another table: its family is not that of ours
		}
		table := conn.AddTable(&nftables.Table{Name: name, Family: family})
		chain := conn.AddChain(&nftables.Chain{Name: "c", Table: table})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}})
	}
	return conn.Flush()
}

// inventory lists what is on the host, a line for each thing. Of what the
// machine shares among its hosts, that of other instances is left out.
func inventory(t *testing.T, s *server) (out []string) {
	t.Helper()
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	err := s.Host.Do(func() error { return network(add) })
	if err != nil {
		t.Fatal(err)
	}
	id := filepath.Base(s.stateDir())
	own := func(path string) bool {
		return strings.Contains(path, id) || strings.HasPrefix(path, filepath.Dir(s.DataDir))
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		p := m.Mountpoint
		if own(p) || !slices.ContainsFunc([]string{"/run/", "/tmp/", "/var/", "/proc/", "/sys/kernel/"}, func(dir string) bool { return strings.HasPrefix(p, dir) }) {
			add("mount %s %s", p, m.FSType)
		}
	}
	if err := filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && own(p) {
			add("cgroup %s", p)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // it has just been removed
			return nil
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var ns string
	if err := s.Host.Do(func() (err error) { ns, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if net, err := os.Readlink(p + "/ns/net"); err != nil || p == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue // it has ended
		} else if groups, _ := os.ReadFile(p + "/cgroup"); net == ns || own(string(groups)) {
			name, _ := os.ReadFile(p + "/cmdline")
			add("process %s %q", p, name)
		}
	}
	return out
}

// network lists the links, addresses, routes and rules of the current network
// namespace.
func network(add func(format string, args ...any)) error {
	links, err := netdump.Whole(netlink.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		add("link %s %s %d", l.Type(), l.Attrs().Name, l.Attrs().MTU)
	}
	addrs, err := netdump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return err
	}
	for _, a := range addrs {
		add("address %s on %d", a.IPNet, a.LinkIndex)
	}
	routes, err := netdump.Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return err
	}
	for _, r := range routes {
		add("route %s", r)
	}
	neighbours, err := netdump.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, unix.AF_INET) })
	if err != nil {
		return err
	}
	for _, n := range neighbours {
		if n.State&unix.NUD_PERMANENT != 0 {
			add("neighbour %s", n.IP)
		}
	}
	rules, err := netdump.Whole(func() ([]netlink.Rule, error) { return netlink.RuleList(unix.AF_INET) })
	if err != nil {
		return err
	}
	for _, r := range rules {
		add("rule %s", r)
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, table := range tables {
		add("table %d %s", table.Family, table.Name)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return err
		}
		add("chain %d %s %s with %d rules", c.Table.Family, c.Table.Name, c.Name, len(rules))
	}
	return nil
}
