package namespace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// parallel is how many resources of one namespace are emptied at a time.
const parallel = 8

var pods = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// resource is a kind of object that namespaces hold.
type resource struct {
	schema.GroupVersionResource
	collection bool // can be deleted all at once
}

// empty deletes what is in a namespace and tells what is left of it.
func (c *Controller) empty(ctx context.Context, namespace string) leftover {
	left := leftover{remaining: map[string]int{}, finalizers: map[string]int{}}
	all, err := c.discover()
	left.discovery = err
	if i := slices.IndexFunc(all, func(r resource) bool { return r.GroupVersionResource == pods }); i >= 0 {
		left.add(c.emptyOne(ctx, all[i], namespace))
		if left.remaining[name(pods)] > 0 {
			left.onlyPods = true
			return left
		}
		all = slices.Delete(all, i, i+1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, r := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			one := c.emptyOne(ctx, r, namespace)
			mu.Lock()
			defer mu.Unlock()
			left.add(one)
		})
	}
	wg.Wait()
	return left
}

// discover lists what namespaces can hold and what can be listed and deleted. An
// error may come with a list: some group did not answer.
func (c *Controller) discover() ([]resource, error) {
	lists, err := c.cfg.Discovery.ServerPreferredNamespacedResources()
	var out []resource
	for _, list := range lists {
		gv, parseErr := schema.ParseGroupVersion(list.GroupVersion)
		if parseErr != nil {
			err = errors.Join(err, parseErr)
			continue
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "delete") {
				continue
			}
			out = append(out, resource{gv.WithResource(r.Name), slices.Contains(r.Verbs, "deletecollection")})
		}
	}
	return out, err
}

// found is what is left of one resource.
type found struct {
	resource   schema.GroupVersionResource
	count      int
	finalizers map[string]int
	err        error
}

// emptyOne deletes one resource's objects, if there are any, and counts those
// that are still there.
func (c *Controller) emptyOne(ctx context.Context, r resource, namespace string) found {
	out := found{resource: r.GroupVersionResource}
	client := c.cfg.Metadata.Resource(r.GroupVersionResource).Namespace(namespace)
	list, err := client.List(ctx, metav1.ListOptions{})
	if gone(err) {
		return out
	}
	if err == nil && len(list.Items) > 0 {
		if err = c.remove(ctx, r, namespace, list.Items); err == nil {
			list, err = client.List(ctx, metav1.ListOptions{})
		}
	}
	if err != nil {
		out.err = fmt.Errorf("delete %s: %w", name(r.GroupVersionResource), err)
	}
	if list == nil {
		return out
	}
	out.count = len(list.Items)
	out.finalizers = map[string]int{}
	for i := range list.Items {
		for _, f := range list.Items[i].Finalizers {
			out.finalizers[f]++
		}
	}
	return out
}

// remove asks for the deletion of all items that are not being deleted yet.
func (c *Controller) remove(ctx context.Context, r resource, namespace string, items []metav1.PartialObjectMetadata) error {
	items = slices.DeleteFunc(slices.Clone(items), func(m metav1.PartialObjectMetadata) bool { return m.DeletionTimestamp != nil })
	if len(items) == 0 {
		return nil
	}
	client := c.cfg.Metadata.Resource(r.GroupVersionResource).Namespace(namespace)
	background := metav1.DeletePropagationBackground
	options := metav1.DeleteOptions{PropagationPolicy: &background}
	if r.collection && len(items) > 1 {
		err := client.DeleteCollection(ctx, options, metav1.ListOptions{})
		if err == nil || !apierrors.IsMethodNotSupported(err) && !apierrors.IsNotFound(err) {
			return err
		}
	}
	var errs []error
	for i := range items {
		if err := client.Delete(ctx, items[i].Name, options); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// gone reports errors of a resource that is no longer served, or cannot be
// listed: there is nothing to delete.
func gone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err)
}

func name(r schema.GroupVersionResource) string {
	if r.Group == "" {
		return r.Resource
	}
	return r.Resource + "." + r.Group
}
