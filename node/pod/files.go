package pod

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/runtime"
)

// DNS is what pods are told of the cluster's name service.
type DNS struct {
	Server netip.Addr
	Domain string
}

const (
	maxSearch      = 32
	maxSearchChars = 2048
	maxNameservers = 3
)

// hostname is the pod's host name, at most 63 characters.
func hostname(p *v1.Pod, domain string) string {
	if p.Spec.HostnameOverride != nil && *p.Spec.HostnameOverride != "" {
		return *p.Spec.HostnameOverride
	}
	short, fqdn := names(p, domain)
	if p.Spec.SetHostnameAsFQDN != nil && *p.Spec.SetHostnameAsFQDN && fqdn != "" {
		return fqdn
	}
	return short
}

// maxHostname is the kernel's limit.
const maxHostname = 64

// checkHostname refuses a full name that is too long for a host name; nothing
// shorter would be what the pod asks for.
func checkHostname(p *v1.Pod, domain string) error {
	if h := hostname(p, domain); !p.Spec.HostNetwork && len(h) > maxHostname {
		return fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", h, maxHostname, len(h))
	}
	return nil
}

// names are the pod's short name and, when it has a subdomain, its full one.
func names(p *v1.Pod, domain string) (short, fqdn string) {
	short = p.Name
	if p.Spec.Hostname != "" {
		short = p.Spec.Hostname
	}
	if len(short) > 63 {
		short = strings.TrimRight(short[:63], "-.")
	}
	if p.Spec.Subdomain != "" {
		fqdn = fmt.Sprintf("%s.%s.%s.svc.%s", short, p.Spec.Subdomain, p.Namespace, domain)
	}
	return short, fqdn
}

// hostsFile is the pod's /etc/hosts.
func hostsFile(p *v1.Pod, ips []string, domain string, host []byte) []byte {
	var b bytes.Buffer
	if p.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(host)
		if len(host) > 0 && host[len(host)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		short, fqdn := names(p, domain)
		if p.Spec.HostnameOverride != nil && *p.Spec.HostnameOverride != "" {
			short, fqdn = *p.Spec.HostnameOverride, ""
		}
		for _, ip := range ips {
			if fqdn != "" {
				fmt.Fprintf(&b, "%s\t%s\t%s\n", ip, fqdn, short)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, short)
			}
		}
	}
	if len(p.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range p.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.Bytes()
}

// resolver is the contents of a resolv.conf.
type resolver struct{ servers, search, options []string }

func parseResolver(data []byte) (r resolver) {
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.servers = append(r.servers, f[1])
		case "search":
			r.search = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

// resolverFor applies dnsPolicy and dnsConfig; host is the node's own.
func resolverFor(p *v1.Pod, dns DNS, host resolver) resolver {
	policy := p.Spec.DNSPolicy
	if policy == v1.DNSClusterFirst && p.Spec.HostNetwork {
		policy = v1.DNSDefault
	}
	var r resolver
	switch policy {
	case v1.DNSNone:
	case v1.DNSDefault:
		r = resolver{slices.Clone(host.servers), slices.Clone(host.search), slices.Clone(host.options)}
	default: // ClusterFirst, ClusterFirstWithHostNet
		r.servers = []string{dns.Server.String()}
		r.search = append([]string{p.Namespace + ".svc." + dns.Domain, "svc." + dns.Domain, dns.Domain}, host.search...)
		r.options = []string{"ndots:5"}
	}
	if c := p.Spec.DNSConfig; c != nil {
		r.servers = append(r.servers, c.Nameservers...)
		r.search = append(r.search, c.Searches...)
		for _, o := range c.Options {
			r.options = slices.DeleteFunc(r.options, func(have string) bool { n, _, _ := strings.Cut(have, ":"); return n == o.Name })
			if o.Value != nil && *o.Value != "" {
				r.options = append(r.options, o.Name+":"+*o.Value)
			} else {
				r.options = append(r.options, o.Name)
			}
		}
	}
	r.servers = unique(r.servers)
	r.search = unique(r.search)
	return r
}

func unique(in []string) (out []string) {
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// limits drops what resolvers would ignore; what says so in words.
func (r *resolver) limits() (what string) {
	if len(r.servers) > maxNameservers {
		r.servers = r.servers[:maxNameservers]
		what = fmt.Sprintf("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: %s", strings.Join(r.servers, " "))
	}
	cut := len(r.search) > maxSearch
	if cut {
		r.search = r.search[:maxSearch]
	}
	for len(strings.Join(r.search, " ")) > maxSearchChars {
		r.search, cut = r.search[:len(r.search)-1], true
	}
	if cut {
		what = fmt.Sprintf("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: %s", strings.Join(r.search, " "))
	}
	return what
}

func (r resolver) bytes() []byte {
	var b bytes.Buffer
	if len(r.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.search, " "))
	}
	for _, s := range r.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.Bytes()
}

// ownFiles writes the files that are the pod's own and returns their mounts.
func (w *worker) ownFiles(c *container, id string) ([]runtime.Mount, error) {
	dir := w.m.podDir(w.uid)
	var out []runtime.Mount
	write := func(name, dest string, data []byte, readonly bool) error {
		path := filepath.Join(dir, name)
		if old, err := os.ReadFile(path); err != nil || !bytes.Equal(old, data) {
			// In place: containers that run have this very file mounted.
			if err := os.WriteFile(path, data, 0o644); err != nil {
				return fmt.Errorf("writing the pod's %s: %w", dest, err)
			}
		}
		out = append(out, runtime.Mount{Destination: dest, HostPath: path, Readonly: readonly})
		return nil
	}
	// As with the root file system; /etc/hosts stays writable, as with kubelet.
	sc := c.spec.SecurityContext
	readonly := sc != nil && sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
	var hosts []byte
	if w.pod.Spec.HostNetwork {
		var err error
		if hosts, err = os.ReadFile("/etc/hosts"); err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("reading the node's /etc/hosts: %w", err)
		}
	}
	domain := w.m.cfg.DNS.Domain
	if err := write("hosts", "/etc/hosts", hostsFile(w.pod, w.ips, domain, hosts), false); err != nil {
		return nil, err
	}
	host, err := os.ReadFile(w.m.cfg.ResolvConf)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("reading the node's resolv.conf: %w", err)
	}
	res := resolverFor(w.pod, w.m.cfg.DNS, parseResolver(host))
	if what := res.limits(); what != "" && !w.warnedDNS {
		w.warnedDNS = true
		w.eventPod(v1.EventTypeWarning, "DNSConfigForming", "%s", what)
	}
	if err := write("resolv.conf", "/etc/resolv.conf", res.bytes(), readonly); err != nil {
		return nil, err
	}
	name := hostname(w.pod, domain)
	if w.pod.Spec.HostNetwork {
		if name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("reading the node's host name: %w", err)
		}
	}
	if err := write("hostname", "/etc/hostname", []byte(name+"\n"), readonly); err != nil {
		return nil, err
	}
	if path := c.spec.TerminationMessagePath; path != "" {
		file := w.terminationFile(c, id)
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			return nil, fmt.Errorf("making the termination message's directory: %w", err)
		}
		if err := os.WriteFile(file, nil, 0o666); err != nil {
			return nil, fmt.Errorf("making the termination message's file: %w", err)
		}
		if err := os.Chmod(file, 0o666); err != nil {
			return nil, err
		}
		out = append(out, runtime.Mount{Destination: filepath.Clean(path), HostPath: file})
	}
	return out, nil
}
