package cluster

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/cluster/upgrade"
)

// podsOn lists the pods that are bound to a node.
func (u upgradeCluster) podsOn(ctx context.Context, node string) ([]corev1.Pod, error) {
	list, err := u.s.client().CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		ResourceVersion: "0", FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String()})
	if err != nil {
		return nil, fmt.Errorf("list the pods on %s: %w", node, err)
	}
	return list.Items, nil
}

// Pods implements upgrade.Cluster.
func (u upgradeCluster) Pods(ctx context.Context, node string, before []string, f *upgrade.Facts) error {
	pods, err := u.podsOn(ctx, node)
	if err != nil {
		return err
	}
	podFacts(pods, before, f)
	return nil
}

func podFacts(pods []corev1.Pod, before []string, f *upgrade.Facts) {
	f.Ready, f.PodsDown, f.Left = []string{}, nil, nil
	for i := range pods {
		p := &pods[i]
		ready := podReady(p)
		going := p.DeletionTimestamp != nil || finished(p)
		if ready && !going {
			f.Ready = append(f.Ready, string(p.UID))
		}
		if !ready && !going && slices.Contains(before, string(p.UID)) {
			f.PodsDown = append(f.PodsDown, p.Namespace+"/"+p.Name)
		}
		if moves(p) {
			why := ""
			if p.DeletionTimestamp != nil {
				why = " (ends)"
			}
			f.Left = append(f.Left, p.Namespace+"/"+p.Name+why)
		}
	}
	slices.Sort(f.Ready)
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// moves tells the pods that leave a node when it is drained: those of DaemonSets
// belong there, and static ones to the host.
func moves(p *corev1.Pod) bool {
	if _, static := p.Annotations[corev1.MirrorPodAnnotationKey]; static || finished(p) {
		return false
	}
	owner := metav1.GetControllerOfNoCopy(p)
	return owner == nil || owner.Kind != "DaemonSet"
}

// Budgets implements upgrade.Cluster. Pods without a controller are named too:
// nobody would make them anew.
func (u upgradeCluster) Budgets(ctx context.Context, nodes []string) ([]string, error) {
	list, err := u.s.client().PolicyV1().PodDisruptionBudgets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("list the PodDisruptionBudgets: %w", err)
	}
	var pods []corev1.Pod
	for _, n := range nodes {
		on, err := u.podsOn(ctx, n)
		if err != nil {
			return nil, err
		}
		pods = append(pods, on...)
	}
	return drainTrouble(list.Items, pods), nil
}

func drainTrouble(budgets []policyv1.PodDisruptionBudget, pods []corev1.Pod) (out []string) {
	for i := range pods {
		if p := &pods[i]; moves(p) && p.DeletionTimestamp == nil && metav1.GetControllerOfNoCopy(p) == nil {
			out = append(out, fmt.Sprintf("the pod %s/%s on %s has no controller: a drain would end it for good; delete it, or do without --drain", p.Namespace, p.Name, p.Spec.NodeName))
		}
	}
	for _, b := range budgets {
		if b.Status.DisruptionsAllowed > 0 {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			continue // it selects nothing
		}
		i := slices.IndexFunc(pods, func(p corev1.Pod) bool {
			return p.Namespace == b.Namespace && moves(&p) && selector.Matches(labels.Set(p.Labels))
		})
		if i >= 0 {
			out = append(out, fmt.Sprintf("the PodDisruptionBudget %s/%s allows no eviction now (%d of %d pods are healthy, %d have to be), as of %s on %s: make room for it, or do without --drain",
				b.Namespace, b.Name, b.Status.CurrentHealthy, b.Status.ExpectedPods, b.Status.DesiredHealthy, pods[i].Name, pods[i].Spec.NodeName))
		}
	}
	return out
}

// Drain implements upgrade.Cluster. What a budget keeps is tried again by the next
// round.
func (u upgradeCluster) Drain(ctx context.Context, node string) (cordoned bool, err error) {
	client := u.s.client()
	n, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	if !n.Spec.Unschedulable {
		if err := u.setUnschedulable(ctx, node, true); err != nil {
			return false, err
		}
		cordoned = true
	}
	pods, err := u.podsOn(ctx, node)
	if err != nil {
		return cordoned, err
	}
	for i := range pods {
		p := &pods[i]
		if !moves(p) || p.DeletionTimestamp != nil {
			continue
		}
		err := client.PolicyV1().Evictions(p.Namespace).Evict(ctx, &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}}})
		if err != nil && !apierrors.IsTooManyRequests(err) && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return cordoned, fmt.Errorf("evict %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	return cordoned, nil
}

// Uncordon implements upgrade.Cluster.
func (u upgradeCluster) Uncordon(ctx context.Context, node string) error {
	err := u.setUnschedulable(ctx, node, false)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (u upgradeCluster) setUnschedulable(ctx context.Context, node string, v bool) error {
	patch := fmt.Appendf(nil, `{"spec":{"unschedulable":%t}}`, v)
	_, err := u.s.client().CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	return err
}
