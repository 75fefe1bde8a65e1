//go:build integration

package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/netproxy"
	"github.com/skiff-sh/skiff/netproxy/netdump"
	"github.com/skiff-sh/skiff/netproxy/podnet"
	"github.com/skiff-sh/skiff/netproxy/ruleset"
)

// stateDir is where the server keeps sockets and runtime state; its base name
// is that of its cgroups too.
func (s *server) stateDir() string {
	sum := sha256.Sum256([]byte(s.DataDir))
	return filepath.Join("/run/skiff", hex.EncodeToString(sum[:4]))
}

// same compares two lists as multisets.
func same(what string, have, want []string) error {
	have, want = slices.Sorted(slices.Values(have)), slices.Sorted(slices.Values(want))
	if !slices.Equal(have, want) {
		return fmt.Errorf("%s:\nhave %q\nwant %q", what, have, want)
	}
	return nil
}

// leftovers says where the host has more, or less, than the given pods need,
// each of which has one container.
func leftovers(s *server, pods []v1.Pod) error {
	var uids, addrs, links, logs, containers, cgroups []string
	for _, p := range pods {
		uid := string(p.UID)
		id := p.Status.ContainerStatuses[0].ContainerID
		uids, addrs = append(uids, uid), append(addrs, p.Status.PodIP)
		links = append(links, podnet.LinkName(uid))
		logs = append(logs, p.Namespace+"_"+p.Name+"_"+uid)
		containers = append(containers, id[strings.LastIndex(id, "/")+1:])
		cgroups = append(cgroups, "pod"+uid)
	}
	node, state := filepath.Join(s.DataDir, "node"), s.stateDir()
	shims, err := shimDirs(filepath.Join(state, "p"))
	if err != nil {
		return err
	}
	if err := same("shims", shims, uids); err != nil {
		return err
	}
	for _, d := range []struct {
		dir  string
		want []string
	}{
		{filepath.Join(state, "p"), uids}, {filepath.Join(state, "volumes"), uids}, {filepath.Join(node, "pods"), uids},
		{filepath.Join(node, "logs"), logs}, {filepath.Join(node, "images", "mounts"), containers},
	} {
		have, err := names(d.dir)
		if err != nil {
			return err
		}
		if err := same(d.dir, have, d.want); err != nil {
			return err
		}
	}
	if err := mountsAre(node, state, len(pods)); err != nil {
		return err
	}
	if err := cgroupsAre(filepath.Base(state), cgroups); err != nil {
		return err
	}
	return networkIs(s, uids, addrs, links)
}

func names(dir string) (out []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, err
}

// shimDirs lists the base names of the directories that living shims below dir
// serve.
func shimDirs(dir string) (out []string, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(b), "\x00")
		if len(args) > 1 && args[0] == "skiff-shim" && filepath.Dir(args[1]) == dir {
			out = append(out, filepath.Base(args[1]))
		}
	}
	return out, err
}

// mountsAre wants one root file system and one /dev/shm for each pod.
func mountsAre(node, state string, pods int) error {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(i.Mountpoint, node+"/") && !strings.HasPrefix(i.Mountpoint, state+"/"), false
	})
	if err != nil {
		return err
	}
	roots, shms := 0, 0
	for _, i := range infos {
		switch {
		case i.FSType == "overlay":
			roots++
		case i.FSType == "tmpfs" && strings.HasSuffix(i.Mountpoint, "/shm"):
			shms++
		default:
			return fmt.Errorf("a mount of no pod: %s (%s)", i.Mountpoint, i.FSType)
		}
	}
	if roots != pods || shms != pods {
		return fmt.Errorf("%d pods with %d root file systems and %d /dev/shm", pods, roots, shms)
	}
	return nil
}

// cgroupsAre wants these pods' cgroups, each with one container's, in every
// hierarchy that has any.
func cgroupsAre(root string, pods []string) error {
	found, err := filepath.Glob("/sys/fs/cgroup/*/skiff/" + root)
	if err != nil {
		return err
	}
	if _, err := os.Stat("/sys/fs/cgroup/skiff/" + root); err == nil {
		found = append(found, "/sys/fs/cgroup/skiff/"+root)
	}
	if len(found) == 0 {
		return fmt.Errorf("no cgroup skiff/%s", root)
	}
	for _, top := range found {
		if resolved, err := filepath.EvalSymlinks(top); err != nil || resolved != top {
			continue
		}
		var have []string
		entries, err := os.ReadDir(top)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() || !strings.HasPrefix(e.Name(), "pod") {
				continue
			}
			have = append(have, e.Name())
			inside := 0
			if err := filepath.WalkDir(filepath.Join(top, e.Name()), func(_ string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					inside++
				}
				return err
			}); err != nil {
				return err
			}
			if inside != 2 {
				return fmt.Errorf("cgroup %s/%s has %d cgroups below it, want the one of its container", top, e.Name(), inside-1)
			}
		}
		if len(have) == 0 {
			continue // a hierarchy that is not used
		}
		if err := same("cgroups in "+top, have, pods); err != nil {
			return err
		}
	}
	return nil
}

// networkIs wants one lease, link and rule for each pod, and no service that
// leads to anybody else.
func networkIs(s *server, uids, addrs, links []string) error {
	b, err := os.ReadFile(filepath.Join(s.DataDir, "node", "network", "leases.json"))
	if err != nil {
		return err
	}
	var leases struct {
		Range netip.Prefix
		Pods  map[string]struct{ Addr string }
	}
	if err := json.Unmarshal(b, &leases); err != nil {
		return err
	}
	var leased, linked, ruled []string
	for uid, l := range leases.Pods {
		leased = append(leased, uid+" "+l.Addr)
	}
	var want []string
	for i := range uids {
		want = append(want, uids[i]+" "+addrs[i])
	}
	if err := same("leases", leased, want); err != nil {
		return err
	}
	var rules *ruleset.State
	err = s.Host.Do(func() error {
		all, err := netdump.Whole(netlink.LinkList)
		if err != nil {
			return err
		}
		for _, l := range all {
			if name := l.Attrs().Name; l.Type() == "veth" && name != "eth0" {
				linked = append(linked, name)
			}
		}
		table := ruleset.New(netproxy.DefaultTableName, ruleset.Params{}, slog.New(slog.DiscardHandler))
		defer table.Close()
		rules, err = table.Load()
		return err
	})
	if err != nil {
		return err
	}
	if err := same("links", linked, links); err != nil {
		return err
	}
	for a := range rules.Hairpin {
		ruled = append(ruled, a.String())
	}
	if err := same("addresses in the ruleset", ruled, addrs); err != nil {
		return err
	}
	served := map[ruleset.Endpoint]bool{}
	for _, l := range rules.Lists {
		for _, e := range l {
			served[e] = true
		}
	}
	for _, l := range rules.Members {
		for e := range l {
			served[e] = true
		}
	}
	for e := range served {
		if a := netip.AddrFrom4(e.Addr); leases.Range.Contains(a) && !slices.Contains(addrs, a.String()) {
			return fmt.Errorf("a service leads to %s, where no pod is", e)
		}
	}
	return nil
}
