package runtime

import "github.com/skiff-sh/skiff/node/runtime/shimproto"

// ContainerStatus is what is known of one container; see shimproto.
type ContainerStatus = shimproto.ContainerStatus

// ContainerState is where a container is in its life.
type ContainerState = shimproto.ContainerState

// The states a container passes through, in this order.
const (
	Created = shimproto.Created
	Running = shimproto.Running
	Exited  = shimproto.Exited
)

// ContainerConfig describes one container to start. ID must be unique on the
// node for all time (a new one for each attempt); it also names the cgroup.
type ContainerConfig struct {
	ID      string
	Name    string
	Attempt uint32

	Rootfs     string   // an absolute path, normally from image.Store.Mount
	Args       []string // entrypoint and arguments, already expanded
	Env        []string // "KEY=value"
	WorkingDir string   // "/" when empty; created in the root file system when missing
	Mounts     []Mount
	User       User

	Capabilities    Capabilities
	Privileged      bool
	ReadonlyRootfs  bool
	NoNewPrivileges bool
	Seccomp         Seccomp
	// MaskedPaths and ReadonlyPaths: nil means DefaultMaskedPaths and
	// DefaultReadonlyPaths (nothing when Privileged), an empty non-nil slice
	// means none (procMount: Unmasked).
	MaskedPaths   []string
	ReadonlyPaths []string
	Devices       []Device // host devices to make available

	// TargetID is a running container of the sandbox whose processes this one
	// shall see: it joins their PID namespace. Without meaning where the pod
	// shares one anyway. ErrNotFound or ErrNotRunning when it does not run.
	TargetID string

	Resources Resources

	TTY       bool
	Stdin     bool // keep standard input open; otherwise /dev/null
	StdinOnce bool // close it when the first attached client leaves
	// LogPath is where CRI-format logs go; relative paths are below the
	// sandbox's LogDir. Empty: output is read and dropped.
	LogPath string

	// Annotations are kept by the shim and returned in ContainerStatus, also
	// to a skiff that adopts the container later.
	Annotations map[string]string
}

// Propagation is a mount's propagation as the pod API names it.
type Propagation int

// Mount propagation modes.
const (
	PropagationPrivate         Propagation = iota // neither side sees the other's later mounts
	PropagationHostToContainer                    // the container sees the host's
	PropagationBidirectional                      // both see both (privileged containers)
)

// Mount is something to see inside the container. With Type "" or "bind",
// HostPath is bind-mounted (recursively); HostPath may be a /proc/self/fd/N or
// /proc/<pid>/fd/N path, for subpaths that were opened safely and stay open
// until StartContainer returns. With Type "tmpfs" HostPath is ignored.
type Mount struct {
	Destination string
	HostPath    string
	Type        string
	Readonly    bool
	// RecursiveReadonly makes submounts read-only too (Linux 5.12).
	RecursiveReadonly bool
	Propagation       Propagation
	Options           []string // further mount options, such as size=64m for tmpfs
}

// User says who the container's process is. Names are looked up in the
// image's own /etc/passwd and /etc/group.
type User struct {
	// Name is the image's USER ("user", "uid", "user:group", …). Used when UID
	// is nil.
	Name string
	UID  *int64
	GID  *int64
	// SupplementalGroups are added to those that the image gives the user.
	SupplementalGroups []int64
	// OnlySupplementalGroups ignores the image's group memberships
	// (supplementalGroupsPolicy: Strict).
	OnlySupplementalGroups bool
}

// Capabilities change the default set; names with or without CAP_, or ALL.
type Capabilities struct {
	Add  []string
	Drop []string
}

// SeccompType chooses a seccomp filter.
type SeccompType string

// Seccomp filter choices.
const (
	SeccompUnconfined     SeccompType = "Unconfined"
	SeccompRuntimeDefault SeccompType = "RuntimeDefault"
	SeccompLocalhost      SeccompType = "Localhost"
)

// Seccomp is a filter choice; the zero value is Unconfined. Profile is the
// profile document (JSON) for Localhost. Privileged containers are never
// filtered.
type Seccomp struct {
	Type    SeccompType
	Profile []byte
}

// Device is a host device node (or a directory of them) for a container.
type Device struct {
	HostPath      string
	ContainerPath string // HostPath when empty
	Permissions   string // "rwm" when empty
}

// Resources are cgroup limits; zero values mean "no limit" or "not set".
type Resources struct {
	CPUShares   int64  // cgroup v1 shares; converted to a weight on v2
	CPUQuota    int64  // microseconds a period; <= 0 none
	CPUPeriod   int64  // microseconds; 100000 when 0 and CPUQuota is set
	MemoryLimit int64  // bytes
	PidsLimit   int64  // processes and threads
	CPUSet      string // cpuset.cpus
	MemorySet   string // cpuset.mems
	OOMScoreAdj int    // containers only
	// HugePages are limits in bytes by the size of the page; none where a size is
	// missing. Without effect where LimitsHugePages is false.
	HugePages map[int64]int64 `json:",omitempty"`
	// Unified are further cgroup v2 settings; refused on v1.
	Unified map[string]string
}

// Stats are a container's resource counters, read from its cgroup.
type Stats struct {
	ID                string
	CPUUsageNanos     uint64
	CPUThrottledNanos uint64
	MemoryUsage       uint64
	MemoryWorkingSet  uint64 // usage less inactive page cache, as kubelet counts it
	MemoryRSS         uint64
	MemoryLimit       uint64 // 0 when unlimited
	PageFaults        uint64
	MajorPageFaults   uint64
	OOMKills          uint64
	Pids              uint64
	PidsLimit         uint64 // 0 when unlimited
}
