package node

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func condition(t v1.NodeConditionType, bad bool, badReason, badMessage, reason, message string) v1.NodeCondition {
	if bad {
		return v1.NodeCondition{Type: t, Status: v1.ConditionTrue, Reason: badReason, Message: badMessage}
	}
	return v1.NodeCondition{Type: t, Status: v1.ConditionFalse, Reason: reason, Message: message}
}

// changes are the names, as kubelet's, of a condition that begins and of one that ends.
var changes = map[v1.NodeConditionType][2]string{
	v1.NodeMemoryPressure: {"NodeHasInsufficientMemory", "NodeHasSufficientMemory"},
	v1.NodeDiskPressure:   {"NodeHasDiskPressure", "NodeHasNoDiskPressure"},
	v1.NodePIDPressure:    {"NodeHasInsufficientPID", "NodeHasSufficientPID"},
	v1.NodeReady:          {"NodeReady", "NodeNotReady"},
}

// tell records events of what has changed in the node's status. That somebody declared
// the node lost, and it says that it is not, is one event, not one for each condition.
func (s *self) tell(before, after v1.NodeStatus) {
	if was, is := before.NodeInfo.BootID, after.NodeInfo.BootID; was != "" && was != is {
		s.event(v1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", s.a.cfg.Name, is))
	}
	was := map[v1.NodeConditionType]v1.ConditionStatus{}
	for _, c := range before.Conditions {
		was[c.Type] = c.Status
	}
	for _, c := range after.Conditions {
		names, ok := changes[c.Type]
		switch {
		case !ok:
		case c.Status == v1.ConditionTrue && was[c.Type] != v1.ConditionTrue:
			s.isNow(names[0])
		case c.Status == v1.ConditionFalse && was[c.Type] == v1.ConditionTrue:
			s.isNow(names[1])
		}
	}
}

// event records an event about the Node.
func (s *self) event(kind, reason, message string) {
	s.recorder.Event(&v1.ObjectReference{Kind: "Node", Name: s.a.cfg.Name, UID: types.UID(s.a.cfg.Name)}, kind, reason, message)
}

// isNow records an event with that reason.
func (s *self) isNow(reason string) {
	s.event(v1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", s.a.cfg.Name, reason))
}
