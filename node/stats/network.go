package stats

import (
	"os"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/skiff-sh/skiff/node/pod"
)

// podInterface is what pods call their way out.
const podInterface = "eth0"

// link is one network interface.
type link struct {
	name   string
	rx, tx traffic
}

// traffic is what went one way.
type traffic struct{ bytes, packets, errors, dropped uint64 }

// parseLinks reads /proc/net/dev, without the loopback and the host's ends of
// pods' interfaces.
func parseLinks(text string) (out []link) {
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || len(f) < 12 || name == "lo" || strings.HasPrefix(name, "veth") || strings.HasPrefix(name, "skiff") {
			continue
		}
		n := make([]uint64, len(f))
		for i, s := range f {
			n[i], _ = strconv.ParseUint(s, 10, 64)
		}
		out = append(out, link{name, traffic{n[0], n[1], n[2], n[3]}, traffic{n[8], n[9], n[10], n[11]}})
	}
	return out
}

// links are the interfaces that a process sees.
func links(pid string) []link {
	b, err := os.ReadFile("/proc/" + pid + "/net/dev")
	if err != nil {
		return nil
	}
	return parseLinks(string(b))
}

// podLinks are the interfaces of a pod that has its own.
func podLinks(v *pod.View) []link {
	s, ok := v.Sandbox.(interface{ PID() int })
	if !ok || v.Pod.Spec.HostNetwork || s.PID() <= 0 {
		return nil
	}
	return links(strconv.Itoa(s.PID()))
}

// defaultInterface is the one with the host's default route.
func defaultInterface() string {
	b, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			return f[0]
		}
	}
	return ""
}

// network is the form of the summary; name is the interface that counts.
func network(list []link, name string, at metav1.Time) *stats.NetworkStats {
	if len(list) == 0 {
		return nil
	}
	out := &stats.NetworkStats{Time: at, Interfaces: []stats.InterfaceStats{}}
	for _, l := range list {
		out.Interfaces = append(out.Interfaces, stats.InterfaceStats{Name: l.name,
			RxBytes: &l.rx.bytes, RxErrors: &l.rx.errors, TxBytes: &l.tx.bytes, TxErrors: &l.tx.errors})
	}
	if i := slices.IndexFunc(out.Interfaces, func(s stats.InterfaceStats) bool { return s.Name == name }); i >= 0 {
		out.InterfaceStats = out.Interfaces[i]
	}
	return out
}
