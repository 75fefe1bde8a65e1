package pod

import "fmt"

// State is where a pod is in its life on this node.
type State string

// The states of a pod.
const (
	New          State = "New"          // accepted, nothing made yet
	Preparing    State = "Preparing"    // volumes, sandbox and network are being made
	Initializing State = "Initializing" // init containers run
	Running      State = "Running"      // containers are kept as restartPolicy says
	Stopping     State = "Stopping"     // containers are being stopped for good
	Stopped      State = "Stopped"      // no container runs, none will
	Gone         State = "Gone"         // sandbox, network and volumes are removed
)

var moves = map[State][]State{
	New:          {Preparing, Stopping, Stopped},
	Preparing:    {Initializing, Stopping, Stopped},
	Initializing: {Running, Preparing, Stopping, Stopped},
	Running:      {Preparing, Stopping, Stopped},
	Stopping:     {Stopped},
	Stopped:      {Gone},
	Gone:         nil,
}

// Move returns next, or an error when a pod in state s can't get there.
// Moving to the state it is in already is no move and no error.
func (s State) Move(next State) (State, error) {
	if s == next {
		return s, nil
	}
	for _, to := range moves[s] {
		if to == next {
			return next, nil
		}
	}
	return s, fmt.Errorf("a pod can't move from %s to %s", s, next)
}

// Final says that no container will be started any more.
func (s State) Final() bool { return s == Stopping || s == Stopped || s == Gone }
