package runtime

import "path/filepath"

// AllStats reads the counters of the cgroup that holds all pods of this runtime.
func (r *Runtime) AllStats() (Stats, error) {
	return r.cgroups.stats(filepath.Join("/", r.cfg.CgroupRoot))
}
