package pod

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func yes() *bool { b := true; return &b }
func no() *bool  { b := false; return &b }

func waitingCtr(name, reason string) v1.ContainerStatus {
	return v1.ContainerStatus{Name: name, Started: no(), State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}}
}
func runningCtr(name string, ready bool) v1.ContainerStatus {
	return v1.ContainerStatus{Name: name, Ready: ready, Started: yes(), State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}
}
func exitedCtr(name string, code int32) v1.ContainerStatus {
	return v1.ContainerStatus{Name: name, Ready: false, Started: no(), State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: code}}}
}
func initDone(name string) v1.ContainerStatus {
	s := exitedCtr(name, 0)
	s.Ready = true
	return s
}
func crashing(name string, code int32) v1.ContainerStatus {
	s := waitingCtr(name, "CrashLoopBackOff")
	s.LastTerminationState.Terminated = &v1.ContainerStateTerminated{ExitCode: code}
	return s
}

func TestPhaseAndConditions(t *testing.T) {
	always, onFailure := v1.ContainerRestartPolicyAlways, v1.ContainerRestartPolicyOnFailure
	for _, tc := range []struct {
		name   string
		policy v1.RestartPolicy
		inits  []v1.Container
		init   []v1.ContainerStatus
		main   []v1.ContainerStatus
		final  bool
		ran    bool // in this sandbox
		before v1.PodPhase
		own    *v1.ContainerRestartPolicy
		reason string
		gates  []v1.PodReadinessGate
		phase  v1.PodPhase
		conds  string // type=status/reason, those that differ from True
	}{
		{name: "nothing yet", main: []v1.ContainerStatus{waitingCtr("a", "ContainerCreating")}, phase: v1.PodPending,
			conds: "Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "one of two runs", main: []v1.ContainerStatus{runningCtr("a", true), waitingCtr("b", "ImagePullBackOff")}, phase: v1.PodPending,
			conds: "Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "runs", main: []v1.ContainerStatus{runningCtr("a", true)}, phase: v1.PodRunning},
		{name: "gate", main: []v1.ContainerStatus{runningCtr("a", true)}, phase: v1.PodRunning,
			gates: []v1.PodReadinessGate{{ConditionType: "x/y"}}, conds: "Ready=False/ReadinessGatesNotReady"},
		{name: "crash loop", main: []v1.ContainerStatus{crashing("a", 1)}, phase: v1.PodRunning,
			conds: "Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "init runs", inits: []v1.Container{{Name: "i"}}, init: []v1.ContainerStatus{runningCtr("i", false)},
			main: []v1.ContainerStatus{waitingCtr("a", "PodInitializing")}, phase: v1.PodPending,
			conds: "Initialized=False/ContainersNotInitialized Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "init crash loop", inits: []v1.Container{{Name: "i"}}, init: []v1.ContainerStatus{crashing("i", 1)},
			main: []v1.ContainerStatus{waitingCtr("a", "PodInitializing")}, phase: v1.PodPending,
			conds: "Initialized=False/ContainersNotInitialized Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "init failed for good", policy: v1.RestartPolicyNever, final: true, inits: []v1.Container{{Name: "i"}},
			init: []v1.ContainerStatus{exitedCtr("i", 1)}, main: []v1.ContainerStatus{waitingCtr("a", "PodInitializing")}, phase: v1.PodFailed,
			conds: "Initialized=False/ContainersNotInitialized Ready=False/PodFailed ContainersReady=False/PodFailed"},
		{name: "sidecar runs, main done", policy: v1.RestartPolicyNever, inits: []v1.Container{{Name: "s", RestartPolicy: &always}},
			init: []v1.ContainerStatus{runningCtr("s", true)}, main: []v1.ContainerStatus{exitedCtr("a", 0)}, phase: v1.PodRunning,
			conds: "Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "sidecar and main done", policy: v1.RestartPolicyNever, final: true, inits: []v1.Container{{Name: "s", RestartPolicy: &always}},
			init: []v1.ContainerStatus{exitedCtr("s", 137)}, main: []v1.ContainerStatus{exitedCtr("a", 0)}, phase: v1.PodSucceeded,
			conds: "Initialized=True/PodCompleted Ready=False/PodCompleted ContainersReady=False/PodCompleted"},
		{name: "sidecar restarts", ran: true, inits: []v1.Container{{Name: "s", RestartPolicy: &always}},
			init: []v1.ContainerStatus{crashing("s", 1)}, main: []v1.ContainerStatus{runningCtr("a", true)}, phase: v1.PodRunning,
			conds: "Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "sidecar has not started", inits: []v1.Container{{Name: "s", RestartPolicy: &always}},
			init: []v1.ContainerStatus{{Name: "s", Started: no(), State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}, main: []v1.ContainerStatus{waitingCtr("a", "PodInitializing")}, phase: v1.PodPending,
			conds: "Initialized=False/ContainersNotInitialized Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "over, but not all has ended", policy: v1.RestartPolicyNever, before: v1.PodRunning, main: []v1.ContainerStatus{exitedCtr("a", 2)}, phase: v1.PodRunning,
			conds: "Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "its own policy restarts it", policy: v1.RestartPolicyNever, own: &onFailure, main: []v1.ContainerStatus{exitedCtr("a", 2)}, phase: v1.PodRunning,
			conds: "Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "deleted while it waits to be restarted", final: true, main: []v1.ContainerStatus{exitedCtr("a", 2)}, phase: v1.PodFailed,
			conds: "Ready=False/PodFailed ContainersReady=False/PodFailed"},
		{name: "deleted when it has ended well", final: true, main: []v1.ContainerStatus{exitedCtr("a", 0)}, phase: v1.PodSucceeded,
			conds: "Initialized=True/PodCompleted Ready=False/PodCompleted ContainersReady=False/PodCompleted"},
		{name: "init done", inits: []v1.Container{{Name: "i"}}, init: []v1.ContainerStatus{initDone("i")},
			main: []v1.ContainerStatus{runningCtr("a", true)}, phase: v1.PodRunning},
		{name: "failed", policy: v1.RestartPolicyNever, final: true, main: []v1.ContainerStatus{exitedCtr("a", 0), exitedCtr("b", 2)}, phase: v1.PodFailed,
			conds: "Ready=False/PodFailed ContainersReady=False/PodFailed"},
		{name: "retried", policy: v1.RestartPolicyOnFailure, main: []v1.ContainerStatus{crashing("a", 2)}, phase: v1.PodRunning,
			conds: "Ready=False/ContainersNotReady ContainersReady=False/ContainersNotReady"},
		{name: "evicted before it ran", final: true, reason: "Evicted", main: []v1.ContainerStatus{waitingCtr("a", "ContainerCreating")}, phase: v1.PodFailed,
			conds: "Ready=False/PodFailed ContainersReady=False/PodFailed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.policy == "" {
				tc.policy = v1.RestartPolicyAlways
			}
			p := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: tc.policy, InitContainers: tc.inits, ReadinessGates: tc.gates}}
			for _, s := range tc.main {
				p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: s.Name, RestartPolicy: tc.own})
			}
			p.Status.Phase = tc.before
			st := compute(observed{pod: p, init: tc.init, main: tc.main, networked: true, final: tc.final, initialized: tc.ran, reason: tc.reason}, time.Unix(1e9, 0))
			if st.Phase != tc.phase {
				t.Errorf("phase %s, want %s", st.Phase, tc.phase)
			}
			var got []string
			for _, c := range st.Conditions {
				if c.Status != v1.ConditionTrue || c.Reason != "" {
					got = append(got, string(c.Type)+"="+string(c.Status)+"/"+c.Reason)
				}
			}
			if s := strings.Join(got, " "); s != tc.conds {
				t.Errorf("conditions %q, want %q", s, tc.conds)
			}
		})
	}
}

func TestConditionsKeepTransitionTimesAndStrangers(t *testing.T) {
	then := metav1.Unix(1e9, 0)
	p := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: v1.RestartPolicyAlways, Containers: []v1.Container{{Name: "a"}}}}
	p.Status.Conditions = []v1.PodCondition{
		{Type: v1.PodReady, Status: v1.ConditionTrue, LastTransitionTime: then},
		{Type: v1.ContainersReady, Status: v1.ConditionFalse, LastTransitionTime: then},
		{Type: "example.com/mine", Status: v1.ConditionFalse, Reason: "Why", LastTransitionTime: then},
	}
	now := time.Unix(2e9, 0)
	st := compute(observed{pod: p, main: []v1.ContainerStatus{runningCtr("a", true)}, networked: true}, now)
	for _, c := range st.Conditions {
		switch c.Type {
		case v1.PodReady:
			if !c.LastTransitionTime.Equal(&then) {
				t.Errorf("Ready did not change, its time did: %v", c.LastTransitionTime)
			}
		case v1.ContainersReady:
			if c.LastTransitionTime.Unix() != now.Unix() {
				t.Errorf("ContainersReady changed, its time did not")
			}
		case "example.com/mine":
			if c.Reason != "Why" {
				t.Errorf("a condition of somebody else was changed: %+v", c)
			}
			return
		}
	}
	t.Error("a condition of somebody else was lost")
}
