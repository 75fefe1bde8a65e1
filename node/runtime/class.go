package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Classes of pods whose cgroups lie together in one; all others, those of
// guaranteed pods, lie in the root.
const (
	Burstable  = "burstable"
	BestEffort = "besteffort"
)

// SetClass gives the pods of a class together, or with "" all pods, what r says of
// CPU shares, memory and process numbers; what is 0 stays as it is, and -1 takes a
// limit away. The cgroup is made if there is none; pods that an older skiff has put
// elsewhere stay where they are.
//
// A memory limit below what is in use is an error where the kernel cannot take
// enough back.
func (r *Runtime) SetClass(class string, res Resources) error {
	path := filepath.Join("/", r.cfg.CgroupRoot, class)
	if err := r.cgroups.set(path, res); err != nil {
		return fmt.Errorf("limits of cgroup %s: %w", path, err)
	}
	return nil
}

func (t *cgroupTree) set(path string, res Resources) error {
	limit := func(n int64, none string) string {
		switch {
		case n == 0:
			return ""
		case n < 0:
			return none
		}
		return strconv.FormatInt(n, 10)
	}
	type setting struct{ controller, file, value string }
	var all []setting
	if t.v2 {
		if err := t.delegate(path); err != nil {
			return err
		}
		weight := ""
		if res.CPUShares > 0 {
			weight = strconv.FormatInt(weightOf(res.CPUShares), 10)
		}
		all = []setting{{"cpu", "cpu.weight", weight}, {"memory", "memory.max", limit(res.MemoryLimit, "max")}, {"pids", "pids.max", limit(res.PidsLimit, "max")}}
	} else {
		all = []setting{{"cpu", "cpu.shares", limit(res.CPUShares, "")}, {"memory", "memory.limit_in_bytes", limit(res.MemoryLimit, "-1")}, {"pids", "pids.max", limit(res.PidsLimit, "max")}}
	}
	var errs []error
	for _, s := range all {
		dir := t.dir(s.controller, path)
		if s.value == "" || dir == "" || !t.has(s.controller) {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		file := filepath.Join(dir, s.file)
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == s.value {
			continue
		}
		if err := os.WriteFile(file, []byte(s.value), 0); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// delegate makes a cgroup of version 2 and the controllers available in it.
func (t *cgroupTree) delegate(path string) error {
	root := t.mounts[""]
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	dir := root
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		for _, c := range strings.Fields(string(b)) {
			// One that cannot be had is found missing where it is needed.
			err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
			if errors.Is(err, fs.ErrPermission) {
				return err
			}
		}
		dir = filepath.Join(dir, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// weightOf is what libcontainer makes of CPU shares with version 2: 1024 is 100,
// the kernel's default, as 2 is 1 and 262144 is 10000.
func weightOf(shares int64) int64 {
	if shares <= 2 {
		return 1
	}
	l := math.Log2(float64(min(shares, 262144)))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}
