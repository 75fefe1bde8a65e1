// Package metrics serves metrics.k8s.io: what nodes and containers use now, as
// `kubectl top` and autoscalers ask for it. Nothing is stored and nobody is
// asked beforehand: a request asks the nodes that it concerns.
//
// Limits: the figures are those of one server; another one has to ask the nodes
// itself. There is no watch, as upstream.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/nodeproxy"
)

// Reader reads the nodes or pods of the cluster.
type Reader interface {
	rest.Getter
	rest.Lister
}

// Config configures NewStorage; every field is needed.
type Config struct {
	Nodes, Pods Reader
	Access      nodeproxy.NodeAccess
	Logger      *slog.Logger
}

// NewStorage builds the storage of the group's resources, by discovery name.
func NewStorage(c Config) (map[string]rest.Storage, error) {
	if c.Nodes == nil || c.Pods == nil || c.Access == nil || c.Logger == nil {
		return nil, errors.New("metrics: Nodes, Pods, Access and Logger are all needed")
	}
	s := &sampler{access: c.Access, nodes: map[string]*sampled{}}
	return map[string]rest.Storage{
		"nodes": &nodes{read: c.Nodes, sampler: s, log: c.Logger, TableConvertor: columns(func(obj runtime.Object) (metav1.ObjectMeta, corev1.ResourceList, metav1.Duration) {
			m := obj.(*metricsv1beta1.NodeMetrics)
			return m.ObjectMeta, m.Usage, m.Window
		})},
		"pods": &pods{read: c.Pods, sampler: s, log: c.Logger, TableConvertor: columns(func(obj runtime.Object) (metav1.ObjectMeta, corev1.ResourceList, metav1.Duration) {
			m := obj.(*metricsv1beta1.PodMetrics)
			return m.ObjectMeta, total(m), m.Window
		})},
	}, nil
}

// columns are those of metrics-server.
func columns(of func(runtime.Object) (metav1.ObjectMeta, corev1.ResourceList, metav1.Duration)) rest.TableConvertor {
	return registry.NewTable([]metav1.TableColumnDefinition{
		registry.Column("Name", "Name of the object"),
		registry.Column("cpu", "CPUs in use"),
		registry.Column("memory", "Working set of memory"),
		registry.Column("Window", "Time over which the CPU was measured"),
	}, func(obj runtime.Object) []any {
		m, usage, window := of(obj)
		return []any{m.Name, usage.Cpu().String(), usage.Memory().String(), window.Duration.String()}
	})
}

// total adds up the containers of a pod.
func total(m *metricsv1beta1.PodMetrics) corev1.ResourceList {
	sum := corev1.ResourceList{}
	for _, c := range m.Containers {
		for name, q := range c.Usage {
			t := sum[name]
			t.Add(q)
			sum[name] = t
		}
	}
	return sum
}

// selected are the options of a request as far as they choose objects.
func selected(o *metainternalversion.ListOptions) *metainternalversion.ListOptions {
	out := &metainternalversion.ListOptions{ResourceVersion: "0"}
	if o != nil {
		out.LabelSelector, out.FieldSelector = o.LabelSelector, o.FieldSelector
	}
	return out
}

// nodes serves NodeMetrics.
type nodes struct {
	read    Reader
	sampler *sampler
	log     *slog.Logger
	rest.TableConvertor
}

var (
	_ rest.Scoper               = (*nodes)(nil)
	_ Reader                    = (*nodes)(nil)
	_ rest.KindProvider         = (*nodes)(nil)
	_ rest.SingularNameProvider = (*nodes)(nil)
)

func (*nodes) New() runtime.Object     { return &metricsv1beta1.NodeMetrics{} }
func (*nodes) NewList() runtime.Object { return &metricsv1beta1.NodeMetricsList{} }
func (*nodes) Destroy()                {}
func (*nodes) Kind() string            { return "NodeMetrics" }
func (*nodes) NamespaceScoped() bool   { return false }

// GetSingularName implements rest.SingularNameProvider. `kubectl get node` means
// another group.
func (*nodes) GetSingularName() string { return "" }

// List implements rest.Lister. Nodes that do not answer are left out.
func (n *nodes) List(ctx context.Context, o *metainternalversion.ListOptions) (runtime.Object, error) {
	obj, err := n.read.List(ctx, selected(o))
	if err != nil {
		return nil, err
	}
	list, ok := obj.(*corev1.NodeList)
	if !ok {
		return nil, fmt.Errorf("list nodes: unexpected object: %T", obj)
	}
	var names []string
	for i := range list.Items {
		if reachable(&list.Items[i]) {
			names = append(names, list.Items[i].Name)
		}
	}
	samples := n.sampler.all(ctx, names, n.log)
	out := &metricsv1beta1.NodeMetricsList{Items: []metricsv1beta1.NodeMetrics{}}
	out.ResourceVersion = list.ResourceVersion
	for i := range list.Items {
		if p, ok := samples[list.Items[i].Name]; ok {
			if m := p.node(&list.Items[i]); m != nil {
				out.Items = append(out.Items, *m)
			}
		}
	}
	return out, ctx.Err()
}

// Get implements rest.Getter.
func (n *nodes) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	obj, err := n.read.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, apierrors.NewNotFound(metricsv1beta1.Resource("nodes"), name)
	}
	if err != nil {
		return nil, err
	}
	node, ok := obj.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("read node %s: unexpected object: %T", name, obj)
	}
	p, err := n.sampler.one(ctx, name)
	if err != nil {
		return nil, unavailable(name, err)
	}
	if m := p.node(node); m != nil {
		return m, nil
	}
	return nil, apierrors.NewNotFound(metricsv1beta1.Resource("nodes"), name)
}

func unavailable(node string, err error) error {
	return apierrors.NewServiceUnavailable(fmt.Sprintf("metrics of node %s: %v", node, err))
}

// reachable is false for a node that the cluster has lost: asking it would only
// take until the deadline.
func reachable(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status != corev1.ConditionUnknown
		}
	}
	return true
}

// pods serves PodMetrics.
type pods struct {
	read    Reader
	sampler *sampler
	log     *slog.Logger
	rest.TableConvertor
}

var (
	_ rest.Scoper               = (*pods)(nil)
	_ Reader                    = (*pods)(nil)
	_ rest.KindProvider         = (*pods)(nil)
	_ rest.SingularNameProvider = (*pods)(nil)
)

func (*pods) New() runtime.Object     { return &metricsv1beta1.PodMetrics{} }
func (*pods) NewList() runtime.Object { return &metricsv1beta1.PodMetricsList{} }
func (*pods) Destroy()                {}
func (*pods) Kind() string            { return "PodMetrics" }
func (*pods) NamespaceScoped() bool   { return true }

// GetSingularName implements rest.SingularNameProvider. `kubectl get pod` means
// another group.
func (*pods) GetSingularName() string { return "" }

// List implements rest.Lister. Pods without a running container, and those of
// nodes that do not answer, are left out.
func (p *pods) List(ctx context.Context, o *metainternalversion.ListOptions) (runtime.Object, error) {
	obj, err := p.read.List(ctx, selected(o))
	if err != nil {
		return nil, err
	}
	list, ok := obj.(*corev1.PodList)
	if !ok {
		return nil, fmt.Errorf("list pods: unexpected object: %T", obj)
	}
	var names []string
	seen := map[string]bool{}
	for i := range list.Items {
		if node := list.Items[i].Spec.NodeName; measurable(&list.Items[i]) && !seen[node] {
			seen[node] = true
			names = append(names, node)
		}
	}
	samples := p.sampler.all(ctx, names, p.log)
	out := &metricsv1beta1.PodMetricsList{Items: []metricsv1beta1.PodMetrics{}}
	out.ResourceVersion = list.ResourceVersion
	for i := range list.Items {
		pod := &list.Items[i]
		if s, ok := samples[pod.Spec.NodeName]; ok && measurable(pod) {
			if m := s.pod(pod); m != nil {
				out.Items = append(out.Items, *m)
			}
		}
	}
	return out, ctx.Err()
}

// Get implements rest.Getter.
func (p *pods) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	missing := apierrors.NewNotFound(metricsv1beta1.Resource("pods"), name)
	obj, err := p.read.Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("read pod %s: unexpected object: %T", name, obj)
	}
	if !measurable(pod) {
		return nil, missing
	}
	s, err := p.sampler.one(ctx, pod.Spec.NodeName)
	if err != nil {
		return nil, unavailable(pod.Spec.NodeName, err)
	}
	if m := s.pod(pod); m != nil {
		return m, nil
	}
	return nil, missing
}

// measurable says whether a pod may have running containers.
func measurable(p *corev1.Pod) bool {
	return p.Spec.NodeName != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}
