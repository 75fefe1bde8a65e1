package runtime

// SandboxConfig describes the surroundings that a pod's containers share. It
// is recorded with the sandbox and returned by Sandbox.Config after adoption.
type SandboxConfig struct {
	PodUID    string `json:"podUID"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Attempt   uint32 `json:"attempt"`

	Hostname string `json:"hostname,omitempty"` // ignored with HostNetwork

	HostNetwork           bool `json:"hostNetwork,omitempty"` // the host's network and UTS namespaces
	HostPID               bool `json:"hostPID,omitempty"`
	HostIPC               bool `json:"hostIPC,omitempty"`
	ShareProcessNamespace bool `json:"shareProcessNamespace,omitempty"`

	// CgroupParent is the cgroup below which pod<uid> is made;
	// Config.CgroupRoot when empty.
	CgroupParent string    `json:"cgroupParent,omitempty"`
	Resources    Resources `json:"resources"` // of the pod as a whole

	Sysctls map[string]string `json:"sysctls,omitempty"` // net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*
	LogDir  string            `json:"logDir,omitempty"`
	ShmSize int64             `json:"shmSize,omitempty"` // bytes of /dev/shm; 64 MiB when 0

	Annotations map[string]string `json:"annotations,omitempty"` // the caller's own
}

// EventType says what an Event tells.
type EventType string

// Event types.
const (
	ContainerStarted EventType = "ContainerStarted"
	ContainerExited  EventType = "ContainerExited"
	ContainerRemoved EventType = "ContainerRemoved"
	// SandboxGone: the shim ended. Containers that had not exited by then
	// were killed and are Exited with a Message.
	SandboxGone EventType = "SandboxGone"
)

// Event is a change in a sandbox.
type Event struct {
	Type      EventType
	Container ContainerStatus // zero for SandboxGone
}

// Size is a terminal's size.
type Size struct{ Width, Height uint16 }

// ExecConfig describes a further process in a running container. User,
// capabilities, environment and seccomp filter are the container's.
type ExecConfig struct {
	Args       []string
	Env        []string // added to the container's
	WorkingDir string   // the container's when empty
	User       *User    // the container's when nil
	TTY        bool
	Size       Size // first size of the TTY; zero leaves it to the resize channel
}
