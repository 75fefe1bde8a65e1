package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-sh/skiff/node/volume"
)

// Objects gives the ConfigMaps and Secrets that pods refer to; *objects.Source
// is one. What it returns is shared and read-only.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
}

// env builds one container's environment.
type env struct {
	objects  Objects
	services []*v1.Service // that the pod gets variables for
	pod      *v1.Pod
	fields   volume.Fields // pod IPs, host IP, node resources
	volume   func(name string) (volume.Mounted, bool)
}

// environ returns "NAME=value" in the order in which the pod names them,
// after the service variables. Later variables win and may refer to earlier
// ones; the map serves to expand command and args.
func (e env) environ(ctx context.Context, c *v1.Container) ([]string, map[string]string, error) {
	vars := map[string]string{}
	var order []string
	set := func(k, v string) {
		if _, ok := vars[k]; !ok {
			order = append(order, k)
		}
		vars[k] = v
	}
	services := serviceEnv(e.services)
	for _, k := range slices.Sorted(maps.Keys(services)) {
		set(k, services[k])
	}
	for _, from := range c.EnvFrom {
		data, err := e.from(ctx, from)
		if err != nil {
			return nil, nil, err
		}
		for _, k := range slices.Sorted(maps.Keys(data)) {
			set(from.Prefix+k, data[k])
		}
	}
	lookup := func(k string) (string, bool) { v, ok := vars[k]; return v, ok }
	for i := range c.Env {
		v := &c.Env[i]
		value := expand(v.Value, lookup)
		if v.ValueFrom != nil {
			var ok bool
			var err error
			if value, ok, err = e.value(ctx, c, v.ValueFrom); err != nil {
				return nil, nil, err
			} else if !ok {
				continue
			}
		}
		set(v.Name, value)
	}
	out := make([]string, 0, len(order))
	for _, k := range order {
		out = append(out, k+"="+vars[k])
	}
	return out, vars, nil
}

func (e env) from(ctx context.Context, from v1.EnvFromSource) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := e.objects.ConfigMap(ctx, e.pod.Namespace, from.ConfigMapRef.Name)
		if err != nil {
			return nil, ignoreMissing(err, from.ConfigMapRef.Optional)
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		s, err := e.objects.Secret(ctx, e.pod.Namespace, from.SecretRef.Name)
		if err != nil {
			return nil, ignoreMissing(err, from.SecretRef.Optional)
		}
		data := map[string]string{}
		for k, v := range s.Data {
			data[k] = string(v)
		}
		return data, nil
	}
	return nil, errors.New("envFrom names no source")
}

func ignoreMissing(err error, optional *bool) error {
	if optional != nil && *optional && apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// value resolves a valueFrom; false means: leave the variable out.
func (e env) value(ctx context.Context, c *v1.Container, from *v1.EnvVarSource) (string, bool, error) {
	switch {
	case from.FieldRef != nil:
		v, err := e.fields.Field(e.pod, from.FieldRef.FieldPath)
		return v, true, err
	case from.ResourceFieldRef != nil:
		target := c
		if n := from.ResourceFieldRef.ContainerName; n != "" && n != c.Name {
			if target = findContainer(e.pod, n); target == nil {
				return "", false, fmt.Errorf("container %s not found", n)
			}
		}
		v, err := e.fields.Resource(e.pod, target, from.ResourceFieldRef.Resource, from.ResourceFieldRef.Divisor)
		return v, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		optional := ref.Optional != nil && *ref.Optional
		cm, err := e.objects.ConfigMap(ctx, e.pod.Namespace, ref.Name)
		if err != nil {
			return "", false, ignoreMissing(err, ref.Optional)
		}
		if v, ok := cm.Data[ref.Key]; ok {
			return v, true, nil
		}
		if optional {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, e.pod.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		optional := ref.Optional != nil && *ref.Optional
		s, err := e.objects.Secret(ctx, e.pod.Namespace, ref.Name)
		if err != nil {
			return "", false, ignoreMissing(err, ref.Optional)
		}
		if v, ok := s.Data[ref.Key]; ok {
			return string(v), true, nil
		}
		if optional {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, e.pod.Namespace, ref.Name)
	}
	if from.FileKeyRef != nil {
		return e.fileValue(from.FileKeyRef)
	}
	return "", false, errors.New("valueFrom names no source that this version of skiff supports")
}

func findContainer(pod *v1.Pod, name string) *v1.Container {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i]
		}
	}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return ephemeralSpec(pod, i)
		}
	}
	return nil
}

// visibleServices chooses the services that a pod gets variables for: those
// of its namespace, if it asks for links, and always default/kubernetes
// (unless its own namespace has a service of that name).
func visibleServices(pod *v1.Pod, all []*v1.Service) []*v1.Service {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	var out []*v1.Service
	var master *v1.Service
	for _, s := range all {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		if s.Namespace == v1.NamespaceDefault && s.Name == "kubernetes" {
			master = s
		} else if links && s.Namespace == pod.Namespace {
			out = append(out, s)
		}
	}
	if master != nil && !slices.ContainsFunc(out, func(s *v1.Service) bool { return s.Name == master.Name }) {
		out = append(out, master)
	}
	return out
}

// serviceEnv makes the variables that Docker links had.
func serviceEnv(services []*v1.Service) map[string]string {
	m := map[string]string{}
	for _, s := range services {
		name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
		ip := s.Spec.ClusterIP
		m[name+"_SERVICE_HOST"] = ip
		m[name+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
		for i, p := range s.Spec.Ports {
			port := strconv.Itoa(int(p.Port))
			if p.Name != "" {
				m[name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = port
			}
			proto := string(v1.ProtocolTCP)
			if p.Protocol != "" {
				proto = string(p.Protocol)
			}
			url := strings.ToLower(proto) + "://" + net.JoinHostPort(ip, port)
			if i == 0 {
				m[name+"_PORT"] = url
			}
			prefix := name + "_PORT_" + port + "_" + proto
			m[prefix] = url
			m[prefix+"_PROTO"] = strings.ToLower(proto)
			m[prefix+"_PORT"] = port
			m[prefix+"_ADDR"] = ip
		}
	}
	return m
}
