package node

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// machine is what a Node says of its hardware and operating system.
type machine struct {
	capacity, allocatable v1.ResourceList
	info                  v1.NodeSystemInfo
	hostname              string
}

func lookAtMachine(c Config) (machine, error) {
	var m machine
	total, _, err := memory()
	if err != nil {
		return m, err
	}
	if err := os.MkdirAll(c.DataDir, 0o755); err != nil {
		return m, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.DataDir, &fs); err != nil {
		return m, fmt.Errorf("statfs %s: %w", c.DataDir, err)
	}
	disk := int64(fs.Blocks) * fs.Bsize
	q := func(n int64, f resource.Format) resource.Quantity { return *resource.NewQuantity(n, f) }
	m.capacity = v1.ResourceList{
		v1.ResourceCPU:              q(int64(runtime.NumCPU()), resource.DecimalSI),
		v1.ResourceMemory:           q(total, resource.BinarySI),
		v1.ResourceEphemeralStorage: q(disk, resource.BinarySI),
		v1.ResourcePods:             q(int64(c.MaxPods), resource.DecimalSI),
	}
	limiter, ok := c.Runtime.(interface{ LimitsHugePages() bool })
	huge, err := hugePages("/sys/kernel/mm/hugepages", ok && limiter.LimitsHugePages())
	if err != nil {
		return m, err
	}
	maps.Copy(m.capacity, huge)
	if m.allocatable, err = reserve(m.capacity, c.Reserved, c.Eviction.Thresholds); err != nil {
		return m, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, fmt.Errorf("uname: %w", err)
	}
	m.hostname = c.Name
	m.info = v1.NodeSystemInfo{
		MachineID: readLine("/etc/machine-id"), SystemUUID: readLine("/sys/class/dmi/id/product_uuid"), BootID: readLine("/proc/sys/kernel/random/boot_id"),
		KernelVersion: unix.ByteSliceToString(uts.Release[:]), OSImage: osImage(),
		ContainerRuntimeVersion: "skiff://" + strings.TrimPrefix(c.RuntimeVersion, "v"), KubeletVersion: c.Version,
		OperatingSystem: "linux", Architecture: runtime.GOARCH,
	}
	if m.info.SystemUUID == "" {
		m.info.SystemUUID = m.info.MachineID
	}
	return m, nil
}

func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "" // not every machine has it
	}
	return strings.TrimSpace(string(b))
}

func osImage() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return "Linux"
}

// memory returns the machine's memory and how much of it can be had.
func memory() (total, available int64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	if total == 0 {
		return 0, 0, fmt.Errorf("/proc/meminfo does not say how much memory there is")
	}
	return total, available, nil
}
