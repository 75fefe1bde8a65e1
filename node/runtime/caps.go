package runtime

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// capabilityNames are the kernel's, by number.
var capabilityNames = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaultCapabilities are what containers get elsewhere too.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// capabilitySet is a set of capability numbers.
type capabilitySet uint64

func (s capabilitySet) has(n int) bool { return s&(1<<n) != 0 }

func (s capabilitySet) names() []string {
	var out []string
	for n, name := range capabilityNames {
		if s.has(n) {
			out = append(out, name)
		}
	}
	return out
}

// capabilityNumber accepts names with and without CAP_, in any case.
func capabilityNumber(name string) (int, bool) {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "CAP_") {
		name = "CAP_" + name
	}
	for n, c := range capabilityNames {
		if c == name {
			return n, true
		}
	}
	return 0, false
}

// ownCapabilities are those that this process has and may hand out. Virtual
// machines and containers often lack some.
func ownCapabilities() (capabilitySet, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	all := ^capabilitySet(0)
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		if k == "CapBnd" || k == "CapPrm" {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("read own capabilities: %w", err)
			}
			all &= capabilitySet(n)
		}
	}
	return all, nil
}

// resolve applies additions and drops to the default set. ALL is handled
// first, as container runtimes do.
func (c Capabilities) resolve(privileged bool, own capabilitySet) ([]string, error) {
	var set capabilitySet
	for _, name := range defaultCapabilities {
		n, _ := capabilityNumber(name)
		set |= 1 << n
	}
	isAll := func(name string) bool { return strings.EqualFold(name, "ALL") }
	for _, name := range c.Add {
		if isAll(name) {
			set = ^capabilitySet(0)
		}
	}
	for _, name := range c.Drop {
		if isAll(name) {
			set = 0
		}
	}
	if privileged {
		set = ^capabilitySet(0)
	}
	for _, name := range c.Add {
		if isAll(name) {
			continue
		}
		n, ok := capabilityNumber(name)
		if !ok {
			return nil, fmt.Errorf("unknown capability %q to add", name)
		}
		set |= 1 << n
	}
	for _, name := range c.Drop {
		if isAll(name) || privileged {
			continue
		}
		n, ok := capabilityNumber(name)
		if !ok {
			return nil, fmt.Errorf("unknown capability %q to drop", name)
		}
		set &^= 1 << n
	}
	return (set & own).names(), nil
}
