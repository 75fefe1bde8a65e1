package pod

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/node/util/sysctl"
)

// safeSysctls are those that only change the pod's own namespaces.
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// Sysctls are the kernel settings that pods of a node may change, beyond the safe
// ones: names, and beginnings of names.
type Sysctls struct{ names, beginnings []string }

var sysctlPattern = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9*]$`)

// ParseSysctls reads what an administrator allows: names such as
// net.core.somaxconn, or kernel.msg* and net.* for all that begin so. Only
// settings that each pod has of its own can be allowed.
func ParseSysctls(patterns []string) (s Sysctls, err error) {
	for _, p := range patterns {
		if !sysctlPattern.MatchString(p) {
			return s, fmt.Errorf("%q is neither the name of a sysctl nor the beginning of names followed by *", p)
		}
		ns, name, beginning := sysctl.GetNamespace(p)
		if ns == sysctl.UnknownNamespace {
			return s, fmt.Errorf("%q: pods have no such setting of their own; net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* can be allowed", p)
		}
		if beginning {
			s.beginnings = append(s.beginnings, name)
		} else {
			s.names = append(s.names, name)
		}
	}
	return s, nil
}

// forbidden says in kubelet's words why a pod may not change a setting; "" if it
// may.
func (s Sysctls) forbidden(name string, p *v1.PodSpec) string {
	name = sysctl.NormalizeName(name)
	allowed := false
	for _, list := range [][]string{safeSysctls, s.names} {
		for _, n := range list {
			allowed = allowed || n == name
		}
	}
	for _, b := range s.beginnings {
		allowed = allowed || strings.HasPrefix(name, b)
	}
	if !allowed {
		return fmt.Sprintf("forbidden sysctl: %q not allowlisted", name)
	}
	switch ns, _, _ := sysctl.GetNamespace(name); {
	case ns == sysctl.IPCNamespace && p.HostIPC, ns == sysctl.NetNamespace && p.HostNetwork:
		return fmt.Sprintf("forbidden sysctl: %q not allowed with host %s enabled", name, ns)
	}
	return ""
}

// ownNetwork are the settings of a pod's own network that it gets if it asks for no
// others, as with containerd: in it nobody needs a capability for ports below 1024
// and for ping.
var ownNetwork = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

// allGroups says that this machine has all groups, as none in a user namespace has.
var allGroups = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/proc/self/gid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
})

// podSysctls are the kernel settings of a pod by name.
func podSysctls(p *v1.PodSpec) map[string]string {
	out := map[string]string{}
	if !p.HostNetwork {
		maps.Copy(out, ownNetwork)
		if !allGroups() {
			delete(out, "net.ipv4.ping_group_range")
		}
	}
	if sc := p.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			out[sysctl.NormalizeName(s.Name)] = s.Value
		}
	}
	return out
}

// admit refuses a pod that would change a setting that it may not.
func (s Sysctls) admit(p *v1.Pod) (reason, message string) {
	if sc := p.Spec.SecurityContext; sc != nil {
		for _, x := range sc.Sysctls {
			if why := s.forbidden(x.Name, &p.Spec); why != "" {
				return "SysctlForbidden", why
			}
		}
	}
	return "", ""
}
