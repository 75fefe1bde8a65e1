package shimproto

import "time"

// ContainerState is where a container is in its life. It only moves forward.
type ContainerState string

// The states a container passes through.
const (
	Created ContainerState = "Created" // accepted, its process does not run yet
	Running ContainerState = "Running"
	Exited  ContainerState = "Exited"
)

// ContainerStatus is what is known of one container. The shim keeps it on disk
// too, so that it survives the shim.
type ContainerStatus struct {
	ID         string         `json:"id"`
	Name       string         `json:"name"`
	Attempt    uint32         `json:"attempt"`
	State      ContainerState `json:"state"`
	PID        int            `json:"pid,omitempty"`
	CreatedAt  time.Time      `json:"createdAt"`
	StartedAt  time.Time      `json:"startedAt,omitzero"`
	FinishedAt time.Time      `json:"finishedAt,omitzero"`
	ExitCode   int            `json:"exitCode"`         // 128+signal when a signal ended it
	Signal     int            `json:"signal,omitempty"` // the signal that ended it, or 0
	OOMKilled  bool           `json:"oomKilled,omitempty"`
	Message    string         `json:"message,omitempty"` // why it could not run, or what was lost
	LogPath    string         `json:"logPath,omitempty"`
	CgroupPath string         `json:"cgroupPath,omitempty"` // below the cgroup mount point(s)
	TTY        bool           `json:"tty,omitempty"`
	Stdin      bool           `json:"stdin,omitempty"`
	// Annotations are the caller's, given at start and returned unchanged.
	Annotations map[string]string `json:"annotations,omitempty"`
}
