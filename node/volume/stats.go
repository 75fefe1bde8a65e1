package volume

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Stats is how full a volume is, in bytes and inodes. What is shared with other
// volumes or with the node (the size of the disk, what is free on it) is that of
// the file system.
type Stats struct {
	Name  string // in the pod
	Claim string // name of the PersistentVolumeClaim behind it, or ""

	Capacity, Available, Used      int64
	Inodes, InodesFree, InodesUsed int64

	// Local says that Used is on the node's disk and counts for the pod's
	// ephemeral storage: emptyDirs on disk, ConfigMaps.
	Local bool
}

// Stats measures the volumes of which a kubelet tells: all but hostPaths and
// images. Directories are walked, so it takes its time for full ones.
func (p *Pod) Stats() []Stats {
	var out []Stats
	for name, v := range p.vols {
		if v.kind == kindHost {
			continue
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(v.Path, &fs); err != nil {
			continue
		}
		s := Stats{Name: name, Claim: v.Claim,
			Capacity: int64(fs.Blocks) * fs.Bsize, Available: int64(fs.Bavail) * fs.Bsize,
			Inodes: int64(fs.Files), InodesFree: int64(fs.Ffree)}
		switch v.kind {
		case kindFS:
			s.Used = int64(fs.Blocks-fs.Bfree) * fs.Bsize
			s.InodesUsed = int64(fs.Files - fs.Ffree)
		default:
			var err error
			if s.Used, s.InodesUsed, err = Usage(v.Path); err != nil {
				continue
			}
			s.Local = v.kind == kindDisk
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Stats) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// kind is how a volume is measured.
type kind int

const (
	kindMem  kind = iota // a directory in memory
	kindDisk             // a directory on the node's disk
	kindFS               // a file system, or a directory that stands for one
	kindHost             // not measured
)
