package membership

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/skiff-sh/skiff/cluster/nodehealth"
)

// shownPods is how many pods a refusal names.
const shownPods = 3

// vacant refuses to give a node's name to another host while pods that must not
// run twice are bound to it and the former host may still run them: it may be cut
// off instead of dead. The judgement is the one by which such pods are replaced.
// In this order: the pods are read, the lease is over, the leader still leads, and
// grants none until the name is given away.
func (s *Service) vacant(ctx context.Context, name string) error {
	if s.c.Client == nil {
		return nil
	}
	kube := s.c.Client()
	if kube == nil {
		return fmt.Errorf("%w: the pods on node %s cannot be read", errTryAgain, name)
	}
	list, err := kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", name).String()})
	if err != nil {
		return fmt.Errorf("pods of node %s: %w", name, err)
	}
	var pods, endless []string
	var tolerated time.Duration
	for i := range list.Items {
		p := &list.Items[i]
		if p.Spec.NodeName != name || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || !nodehealth.Once(p) {
			continue
		}
		key := p.Namespace + "/" + p.Name
		pods = append(pods, key)
		d, ok := nodehealth.RunsOn(p)
		if !ok {
			endless = append(endless, key)
		}
		tolerated = max(tolerated, d)
	}
	if len(pods) == 0 {
		return nil
	}
	node, err := kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		node = nil
	case err != nil:
		return fmt.Errorf("node %s: %w", name, err)
	case nodehealth.OutOfService(node):
		return nil
	}
	when := "when " + someOf(endless) + " was removed by hand"
	if len(endless) == 0 {
		end, err := nodehealth.AskEnd(ctx, s.c.Raft.CallLeader, name, tolerated)
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", errTryAgain, err)
		case end.Over:
			return nil
		case end.Frozen:
			when = "when evictions are no longer frozen (skiff status says why they are)"
		default:
			when = "in " + (end.Wait + time.Second).Truncate(time.Second).String()
		}
	}
	if node == nil {
		return refuse(http.StatusConflict, "the former host with the name %s may still run %s, which must not run twice: choose another name with --name, or try again in a minute, when they are removed from the node that no longer exists", name, someOf(pods))
	}
	return refuse(http.StatusConflict, "the former host with the name %s may still run %s, which must not run twice: choose another name with --name, or try again %s; at once only after making sure that it is off and saying so: kubectl taint node %s %s=nodeshutdown:NoExecute (take the taint off when this host has joined)",
		name, someOf(pods), when, name, corev1.TaintNodeOutOfService)
}

// someOf names the first few.
func someOf(keys []string) string {
	slices.Sort(keys)
	if n := len(keys) - shownPods; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(keys[:shownPods], ", "), n)
	}
	return strings.Join(keys, ", ")
}
