package pod

import (
	v1 "k8s.io/api/core/v1"
)

// phaseOf sums up the containers.
func phaseOf(o observed) v1.PodPhase {
	phase := phaseNow(o)
	terminal := phase == v1.PodSucceeded || phase == v1.PodFailed
	switch {
	case o.final && !terminal:
		return v1.PodFailed // nothing starts any more: what has not succeeded has failed
	case !o.final && terminal:
		// Something may run still, if only to be ended: it is said when all is over.
		if o.pod.Status.Phase == "" {
			return v1.PodPending
		}
		return o.pod.Status.Phase
	}
	return phase
}

// outcome is how a container ended that does not run.
func outcome(s v1.ContainerStatus) *v1.ContainerStateTerminated {
	if s.State.Terminated != nil {
		return s.State.Terminated
	}
	return s.LastTerminationState.Terminated
}

func phaseNow(o observed) v1.PodPhase {
	policy := o.pod.Spec.RestartPolicy
	again := func(c *v1.Container, t *v1.ContainerStateTerminated) bool {
		return t.Reason == reasonRestartingAll || restartsAfter(c, policy, t.ExitCode)
	}
	initPending, sidecarPending, running, waiting := 0, 0, 0, 0
	for i, s := range o.init {
		c := &o.pod.Spec.InitContainers[i]
		t := outcome(s)
		switch sidecar := restartableInit(c); {
		case sidecar && s.State.Running != nil:
			running++
			if s.Started == nil || !*s.Started {
				sidecarPending++
			}
		case sidecar && t == nil:
			sidecarPending++
			waiting++
		case sidecar: // one that has ended says nothing of the pod
		case s.State.Running != nil || t == nil:
			initPending++
		case t.ExitCode != 0 && !again(c, t):
			return v1.PodFailed
		}
	}
	stopped, succeeded, restarting := 0, 0, 0
	for _, s := range o.main {
		t := outcome(s)
		switch {
		case s.State.Running != nil:
			running++
		case t == nil:
			waiting++
		default:
			stopped++
			if t.ExitCode == 0 && s.State.Terminated != nil {
				succeeded++
			}
			if again(mainSpec(o.pod, s.Name), t) {
				restarting++
			}
		}
	}
	switch {
	case initPending > 0 || sidecarPending > 0 && !o.initialized || waiting > 0:
		return v1.PodPending
	case running > 0:
		return v1.PodRunning
	case stopped == 0:
		return v1.PodPending
	case restarting > 0 && !o.final:
		return v1.PodRunning
	case stopped == succeeded:
		return v1.PodSucceeded
	}
	return v1.PodFailed
}

func mainSpec(p *v1.Pod, name string) *v1.Container {
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == name {
			return &p.Spec.Containers[i]
		}
	}
	return &v1.Container{}
}

// concluded gives containers of a pod that is over, and that may have run, an
// end: nobody knows how they ended, so they count as failed. Those that
// certainly never ran stay as they are.
func concluded(o *observed) {
	end := func(s *v1.ContainerStatus) {
		if s.State.Terminated == nil {
			s.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: 137, Reason: reasonUnknown,
				Message: "The container could not be located when the pod was terminated"}}
		}
	}
	tried := 0 // init containers that were begun; the first always counts
	for i, s := range o.init {
		if i == 0 || s.State.Waiting == nil || s.LastTerminationState.Terminated != nil {
			tried = i + 1
		}
	}
	ran := len(o.init) == 0
	for _, s := range o.main {
		ran = ran || s.State.Waiting == nil || s.LastTerminationState.Terminated != nil
	}
	if n := len(o.init); n > 0 && !ran {
		last, t := o.init[n-1], outcome(o.init[n-1])
		ran = !restartableInit(&o.pod.Spec.InitContainers[n-1]) && t != nil && t.ExitCode == 0 && last.State.Running == nil
	}
	for i := range tried {
		end(&o.init[i])
	}
	if ran {
		for i := range o.main {
			end(&o.main[i])
		}
	}
}

// reasonUnknown is the reason of an end that nobody saw.
const reasonUnknown = "ContainerStatusUnknown"
