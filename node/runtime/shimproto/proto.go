// Package shimproto is what skiff and a pod's shim (cmd/skiff-shim) say to
// each other over the shim's Unix socket.
//
// Every exchange is a connection of its own. The client sends a Hello and one
// Request without waiting, the shim answers with its Hello and then, depending
// on the operation, one Response, a stream of events, or a session of stream
// frames that ends with an Exit.
//
// A shim lives as long as its pod, so it is usually older than the skiff that
// talks to it. Version counts up with every change of meaning; fields and
// operations are only ever added, and a client must go on speaking every
// version down to MinVersion. What a shim does not know it refuses by name.
package shimproto

import (
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// Version is the newest protocol version, MinVersion the oldest still spoken.
	Version    = 1
	MinVersion = 1

	// ListenFD is the file descriptor at which the shim finds its listening socket.
	ListenFD = 3

	// HoldCommand makes the binary hold two sockets open and do nothing else;
	// HeldUDP and HeldTCP are their descriptors, from which pidfd_getfd(2)
	// takes them back.
	HoldCommand = "hold"
	HeldUDP     = 3
	HeldTCP     = 4
	// SocketName, ConfigName and so on are files in a sandbox's directory.
	SocketName    = "s"
	ConfigName    = "sandbox.json"
	ShmName       = "shm"        // mount point of the pod's /dev/shm
	RecordsName   = "containers" // one file of ContainerStatus for each container
	RuncStateName = "runc"       // libcontainer's state
	LogName       = "shim.log"
)

// Hello opens a connection, in both directions.
type Hello struct {
	Version int    `json:"version"`
	Min     int    `json:"min"`
	Build   string `json:"build,omitempty"` // for humans
	PID     int    `json:"pid,omitempty"`
}

// Check says whether a peer with this Hello can be talked to.
func (h Hello) Check() error {
	if h.Version < MinVersion || h.Min > Version {
		return fmt.Errorf("shim protocol versions %d to %d are spoken here, the other side speaks %d to %d (build %q)",
			MinVersion, Version, h.Min, h.Version, h.Build)
	}
	return nil
}

// Op names an operation.
type Op string

// The operations.
const (
	OpWatch    Op = "watch"    // -> Events: every status, a Synced, then changes
	OpStart    Op = "start"    // -> Response
	OpSignal   Op = "signal"   // -> Response
	OpRemove   Op = "remove"   // -> Response
	OpUpdate   Op = "update"   // -> Response; without ID the pod's cgroup
	OpReopen   Op = "reopen"   // -> Response
	OpExec     Op = "exec"     // -> Response, then stream frames, then Exit
	OpAttach   Op = "attach"   // -> Response, then stream frames, then Exit
	OpShutdown Op = "shutdown" // kills all containers -> Response, then the shim ends
)

// Request asks for one operation.
type Request struct {
	Op        Op                    `json:"op"`
	ID        string                `json:"id,omitempty"` // of the container
	Start     *Start                `json:"start,omitempty"`
	Exec      *Exec                 `json:"exec,omitempty"`
	Attach    *Attach               `json:"attach,omitempty"`
	Signal    int                   `json:"signal,omitempty"`
	Resources *specs.LinuxResources `json:"resources,omitempty"`
}

// Start describes a container. The network, IPC and UTS namespaces (and the
// PID namespace when Sandbox.SharePID) are the shim's to add to Spec.
type Start struct {
	Status    ContainerStatus `json:"status"` // identity, LogPath, CgroupPath, Annotations
	Spec      *specs.Spec     `json:"spec"`
	Stdin     bool            `json:"stdin,omitempty"`
	StdinOnce bool            `json:"stdinOnce,omitempty"`
}

// Exec describes a further process in a container.
type Exec struct {
	Args  []string    `json:"args"`
	Env   []string    `json:"env,omitempty"` // added to the container's
	Cwd   string      `json:"cwd,omitempty"`
	User  *specs.User `json:"user,omitempty"`
	TTY   bool        `json:"tty,omitempty"`
	Stdin bool        `json:"stdin,omitempty"` // stdin frames will follow
	Size  Size        `json:"size,omitzero"`
}

// Attach says which streams a client wants.
type Attach struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// Size is a terminal's size.
type Size struct {
	Width  uint16 `json:"w"`
	Height uint16 `json:"h"`
}

// Code classifies a refusal.
type Code string

// Codes of refusals.
const (
	CodeNotFound   Code = "NotFound"   // no such container
	CodeNotRunning Code = "NotRunning" // it exists, but its process does not run
	CodeExists     Code = "Exists"     // the ID is taken
	CodeSetup      Code = "Setup"      // the sandbox itself could not be set up
	CodeUnknownOp  Code = "UnknownOp"  // an older shim
)

// Response answers a Request.
type Response struct {
	Error  string           `json:"error,omitempty"`
	Code   Code             `json:"code,omitempty"`
	Status *ContainerStatus `json:"status,omitempty"`
	// Warning is something the user should know though the request succeeded.
	Warning string `json:"warning,omitempty"`
}

// Exit ends an exec or attach session.
type Exit struct {
	Error    string `json:"error,omitempty"`
	ExitCode int    `json:"exitCode"`
}

// Event is one message of a watch.
type Event struct {
	Status  *ContainerStatus `json:"status,omitempty"`  // the container's new status
	Removed string           `json:"removed,omitempty"` // ID of a container that was removed
	Synced  bool             `json:"synced,omitempty"`  // everything known has been sent
}

// Sandbox is the shim's configuration, in ConfigName of its directory.
type Sandbox struct {
	Hostname    string                `json:"hostname,omitempty"`
	HostNetwork bool                  `json:"hostNetwork,omitempty"`
	HostIPC     bool                  `json:"hostIPC,omitempty"`
	SharePID    bool                  `json:"sharePID,omitempty"`
	Cgroup      string                `json:"cgroup"`              // the pod's cgroup
	Resources   *specs.LinuxResources `json:"resources,omitempty"` // of the pod's cgroup
	Sysctls     map[string]string     `json:"sysctls,omitempty"`
	// Fence limits how long the containers run without contact; nil: for ever.
	// Shims of before it was added ignore it.
	Fence *Fence `json:"fence,omitempty"`
	// SeccompDir is where shims keep translated seccomp profiles, for all pods;
	// "": nowhere. Shims of before it was added ignore it.
	SeccompDir string `json:"seccompDir,omitempty"`
	// Client is the creator's own record; the shim does not read it.
	Client json.RawMessage `json:"client,omitempty"`
}
