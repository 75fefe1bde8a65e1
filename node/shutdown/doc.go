// Package shutdown ends a node's pods in good order when the machine is shut
// down: those of low priority first, each with its grace period, within the
// times that are set for ranges of priorities.
//
// It learns of a shutdown from systemd-logind, and holds it up with a delay
// inhibitor until the pods have ended. That skiff itself is stopped or started
// again ends no pod.
//
// Limits: a machine without systemd-logind, and one that is cut off from power
// or killed at once, gives no time. logind waits only as long as its
// InhibitDelayMaxSec, which is raised by a file in /etc/systemd/logind.conf.d.
package shutdown
